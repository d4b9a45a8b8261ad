// One file over HTTP into a part file: parallel range requests, a small JSON state beside the data, so that Ctrl-C,
// kill -9, a cut connection or a full disk lose at most the last seconds. Every range is guarded by the entity's ETag
// (If-Range) and by Content-Range; a server that ignores ranges gets one plain request. The SHA-256 is computed behind
// the writing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "base/result.h"
#include "hub/cancel.h"
#include "hub/source.h"

namespace still {

struct DownloadJob {
  UrlFetch from;
  std::filesystem::path part;   // the bytes; sparse while it grows
  std::filesystem::path state;  // which of them are here; removed when all are
  std::int64_t size = -1;       // expected; -1: not known
  std::string sha256;           // expected; empty: not known
  std::function<void(std::int64_t done_bytes, std::int64_t total_bytes)>
      on_bytes;                                     // about ten times a second; -1 unknown
  std::function<void(const std::string&)> on_note;  // retries, fresh starts
};

struct DownloadReport {
  std::int64_t size = 0;
  std::int64_t fetched_bytes = 0;  // came over the network now
  std::int64_t resumed_bytes = 0;  // were here from an earlier run
  std::string sha256;
};

// On success the part is complete, synced and verified. On kCancelled, kUnavailable and kResourceExhausted the part and
// its state stay for the next run; on kCorrupt (wrong digest or size) they are removed.
Result<DownloadReport> download_file(const DownloadJob& job, const HubOptions& options, const CancelToken& cancel);

}  // namespace still
