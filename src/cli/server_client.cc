#include "cli/server_client.h"

#include "hub/http.h"

namespace still {
namespace {

constexpr long kConnectSeconds = 3, kTotalSeconds = 60;
constexpr std::size_t kMaxAnswer = 16 << 20;

std::size_t on_bytes(char* data, std::size_t size, std::size_t n, void* user) {
  auto& text = *static_cast<std::string*>(user);
  if (text.size() + size * n > kMaxAnswer) return 0;
  text.append(data, size * n);
  return size * n;
}

}  // namespace

Result<Json> call_server(const ServeEnvironment& environment, const std::string& path, const std::string& body) {
  const std::string url = environment.address.for_client().url() + path;
  const HubOptions options;
  const CurlHandle curl = make_curl(options);
  std::vector<std::string> lines = {"Content-Type: application/json"};
  if (!environment.client_key.empty()) lines.push_back("Authorization: Bearer " + environment.client_key);
  const CurlHeaders headers = make_headers(lines);
  std::string answer;
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl.get(), CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT, kTotalSeconds);
  if (!body.empty()) curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDS, body.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, on_bytes);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &answer);
  if (!environment.client_ca.empty()) curl_easy_setopt(curl.get(), CURLOPT_CAINFO, environment.client_ca.c_str());
  if (const CURLcode code = curl_easy_perform(curl.get()); code != CURLE_OK) {
    if (code == CURLE_PEER_FAILED_VERIFICATION)
      return error(
          Code::kUnavailable,
          "the certificate of {} is not trusted: STILL_CA_FILE names a file of the authorities that may sign it",
          environment.address.for_client().url());
    if (code == CURLE_SSL_CACERT_BADFILE)
      return error(Code::kUnavailable, "{}: no file of certificates (STILL_CA_FILE, SSL_CERT_FILE)",
                   environment.client_ca);
    return error(Code::kUnavailable, "no server answers at {}: {}; `still serve` starts one",
                 environment.address.for_client().url(), curl_easy_strerror(code));
  }
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  Result<Json> json = parse_json(answer, url);
  if (status < 400) return json;
  std::string sentence = answer.substr(0, 300);
  if (json && json->is_object()) {
    const Json* told = json->get_object().if_contains("error");
    if (told && told->is_object()) told = told->get_object().if_contains("message");
    if (told && told->is_string()) sentence = std::string(told->get_string());
  }
  const Code code = status == 404                    ? Code::kNotFound
                    : status == 401 || status == 403 ? Code::kPermissionDenied
                                                     : Code::kInternal;
  return error(code, "{}", sentence);
}

}  // namespace still
