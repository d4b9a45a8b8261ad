// CUDA memory, streams, events and graphs as move-only objects, without CUDA's headers: whoever includes this compiles
// with and without CUDA. A build without it links tensor/cuda/runtime_stub.cc, where there is no device.
//
// Errors: the first failed call of a device is remembered by CUDA itself ("sticky"); check_cuda() tells it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace still {

struct CudaDeviceInfo {
  std::string name;
  std::int32_t index = 0, major = 0, minor = 0, n_multiprocessors = 0;
  std::int64_t total_bytes = 0, free_bytes = 0, l2_bytes = 0;
  std::string driver;  // "13.0": the newest CUDA that the driver runs
};

// Devices that this build can use; why there is none: `reason` (no CUDA in this build, no driver, no device).
std::vector<CudaDeviceInfo> list_cuda_devices(std::string* reason = nullptr);
// Bytes of a device's memory, without a change of the current device; 0: there is no such device.
std::int64_t cuda_total_memory(std::int32_t index);

// Makes the device current for the calling thread. kUnavailable where it cannot.
Status use_cuda_device(std::int32_t index);
// Lets the device read and write memory of another; kUnsupported where the machine has no way.
Status enable_peer_access(std::int32_t device, std::int32_t peer);
// n_rows pieces of `bytes` on the device of `stream`, `to_pitch` and `from_pitch` bytes apart.
void copy_rows_on_device(void* stream, void* to, std::int64_t to_pitch, const void* from, std::int64_t from_pitch,
                         std::int64_t bytes, std::int64_t n_rows);
// The first error of earlier calls and kernels, in a sentence that begins with `what`.
Status check_cuda(std::string_view what);

// Device memory.
class DeviceBuffer {
 public:
  // kResourceExhausted in a sentence that names `what`. 0 bytes: null.
  static Result<DeviceBuffer> create(std::int64_t bytes, std::string_view what);
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();
  std::byte* data() const { return data_; }
  std::int64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
};

// Host memory that the device reads and writes without a detour.
class PinnedBuffer {
 public:
  static Result<PinnedBuffer> create(std::int64_t bytes, std::string_view what);
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();
  std::byte* data() const { return data_; }
  std::int64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
};

// A captured sequence of launches.
class CudaGraph {
 public:
  CudaGraph() = default;
  CudaGraph(CudaGraph&& other) noexcept;
  CudaGraph& operator=(CudaGraph&& other) noexcept;
  ~CudaGraph();
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  friend class CudaStream;
  void* handle_ = nullptr;  // cudaGraphExec_t
};

class CudaStream {
 public:
  static Result<CudaStream> create();
  CudaStream() = default;
  CudaStream(CudaStream&& other) noexcept;
  CudaStream& operator=(CudaStream&& other) noexcept;
  ~CudaStream();
  void* handle() const { return handle_; }  // cudaStream_t

  // Asynchronous, in order. Errors show at the next wait().
  void copy_to_device(void* to, const void* from, std::int64_t bytes);
  void copy_to_host(void* to, const void* from, std::int64_t bytes);
  void copy_on_device(void* to, const void* from, std::int64_t bytes);
  void fill(void* at, int byte, std::int64_t bytes);
  // Until all is done; the first error since, named by `what`.
  Status wait(std::string_view what);

  void begin_capture();
  Result<CudaGraph> end_capture();
  void launch(const CudaGraph& graph);

 private:
  void* handle_ = nullptr;
};

// A point of a stream.
class CudaEvent {
 public:
  static Result<CudaEvent> create(bool is_timed);
  CudaEvent() = default;
  CudaEvent(CudaEvent&& other) noexcept;
  CudaEvent& operator=(CudaEvent&& other) noexcept;
  ~CudaEvent();
  void record(CudaStream& stream);
  // Until the stream has come here; at once where it was never recorded.
  Status wait(std::string_view what);
  double seconds_since(const CudaEvent& earlier) const;  // both timed, recorded and reached; else 0

 private:
  void* handle_ = nullptr;
};

// Milliseconds of device time between two points of a stream, for measurements.
class CudaTimer {
 public:
  static Result<CudaTimer> create();
  CudaTimer() = default;
  CudaTimer(CudaTimer&& other) noexcept;
  CudaTimer& operator=(CudaTimer&& other) noexcept;
  ~CudaTimer();
  void start(CudaStream& stream);
  void stop(CudaStream& stream);
  double milliseconds();  // waits

 private:
  [[maybe_unused]] void* begin_ = nullptr;  // unused where there is no CUDA
  [[maybe_unused]] void* end_ = nullptr;
};

}  // namespace still
