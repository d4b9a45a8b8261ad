// tensor/cuda.h on the CUDA runtime, which is linked statically: without a driver its calls fail and nothing else.
#include <cuda_runtime_api.h>

#include <utility>

#include "tensor/cuda.h"

namespace still {

namespace {
constexpr int kOldestMajor = 8;

cudaStream_t stream_of(void* handle) {
  return static_cast<cudaStream_t>(handle);
}

tl::unexpected<Error> cuda_error(std::string_view what, cudaError_t code) {
  return error(code == cudaErrorMemoryAllocation ? Code::kResourceExhausted : Code::kUnavailable, "{}: {}", what,
               cudaGetErrorString(code));
}
}  // namespace

std::vector<CudaDeviceInfo> list_cuda_devices(std::string* reason) {
  std::vector<CudaDeviceInfo> devices;
  int count = 0, driver = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    if (reason != nullptr) *reason = cudaGetErrorString(code);
    (void)cudaGetLastError();
    return devices;
  }
  (void)cudaDriverGetVersion(&driver);
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) continue;
    if (properties.major < kOldestMajor) {
      if (reason != nullptr)
        *reason = fmt::format("{}: compute capability {}.{}, expected 8.0 or newer", properties.name, properties.major,
                              properties.minor);
      continue;
    }
    CudaDeviceInfo info;
    info.name = properties.name;
    info.index = index;
    info.major = properties.major;
    info.minor = properties.minor;
    info.n_multiprocessors = properties.multiProcessorCount;
    info.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    info.l2_bytes = properties.l2CacheSize;
    info.driver = fmt::format("{}.{}", driver / 1000, driver % 1000 / 10);
    std::size_t free_bytes = 0, total_bytes = 0;
    if (cudaSetDevice(index) == cudaSuccess && cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess)
      info.free_bytes = static_cast<std::int64_t>(free_bytes);
    devices.push_back(std::move(info));
  }
  if (devices.empty() && reason != nullptr && reason->empty()) *reason = "no CUDA device";
  (void)cudaGetLastError();
  return devices;
}

std::int64_t cuda_total_memory(std::int32_t index) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) == cudaSuccess)
    return static_cast<std::int64_t>(properties.totalGlobalMem);
  (void)cudaGetLastError();
  return 0;
}

Status use_cuda_device(std::int32_t index) {
  if (const cudaError_t code = cudaSetDevice(index); code != cudaSuccess)
    return cuda_error(fmt::format("GPU {}", index), code);
  return ok();
}

Status enable_peer_access(std::int32_t device, std::int32_t peer) {
  if (device == peer) return ok();
  STILL_TRY_STATUS(use_cuda_device(device));
  int can = 0;
  if (const cudaError_t code = cudaDeviceCanAccessPeer(&can, device, peer); code != cudaSuccess)
    return cuda_error(fmt::format("GPU {} and GPU {}", device, peer), code);
  if (can == 0) return error(Code::kUnsupported, "GPU {} does not reach the memory of GPU {}", device, peer);
  const cudaError_t code = cudaDeviceEnablePeerAccess(peer, 0);
  if (code == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
    return ok();
  }
  if (code != cudaSuccess) return cuda_error(fmt::format("GPU {} and GPU {}", device, peer), code);
  return ok();
}

void copy_rows_on_device(void* stream, void* to, std::int64_t to_pitch, const void* from, std::int64_t from_pitch,
                         std::int64_t bytes, std::int64_t n_rows) {
  (void)cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_pitch), from, static_cast<std::size_t>(from_pitch),
                          static_cast<std::size_t>(bytes), static_cast<std::size_t>(n_rows), cudaMemcpyDeviceToDevice,
                          stream_of(stream));
}

Status check_cuda(std::string_view what) {
  if (const cudaError_t code = cudaGetLastError(); code != cudaSuccess) return cuda_error(what, code);
  return ok();
}

Result<DeviceBuffer> DeviceBuffer::create(std::int64_t bytes, std::string_view what) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  void* data = nullptr;
  if (const cudaError_t code = cudaMalloc(&data, static_cast<std::size_t>(bytes)); code != cudaSuccess) {
    (void)cudaGetLastError();
    return cuda_error(fmt::format("{}: {} bytes of GPU memory", what, bytes), code);
  }
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  return buffer;
}
DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) (void)cudaFree(data_);
}

Result<PinnedBuffer> PinnedBuffer::create(std::int64_t bytes, std::string_view what) {
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  void* data = nullptr;
  if (const cudaError_t code = cudaMallocHost(&data, static_cast<std::size_t>(bytes)); code != cudaSuccess) {
    (void)cudaGetLastError();
    return cuda_error(fmt::format("{}: {} bytes of pinned memory", what, bytes), code);
  }
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  return buffer;
}
PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}

CudaGraph::CudaGraph(CudaGraph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
CudaGraph& CudaGraph::operator=(CudaGraph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
CudaGraph::~CudaGraph() {
  if (handle_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

Result<CudaStream> CudaStream::create() {
  CudaStream stream;
  cudaStream_t handle = nullptr;
  if (const cudaError_t code = cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking); code != cudaSuccess)
    return cuda_error("CUDA stream", code);
  stream.handle_ = handle;
  return stream;
}
CudaStream::CudaStream(CudaStream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
CudaStream& CudaStream::operator=(CudaStream&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
CudaStream::~CudaStream() {
  if (handle_ != nullptr) (void)cudaStreamDestroy(stream_of(handle_));
}

// Failures of these calls are sticky or show at the next wait(); nothing is computed after them.
void CudaStream::copy_to_device(void* to, const void* from, std::int64_t bytes) {
  (void)cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream_of(handle_));
}
void CudaStream::copy_to_host(void* to, const void* from, std::int64_t bytes) {
  (void)cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream_of(handle_));
}
void CudaStream::copy_on_device(void* to, const void* from, std::int64_t bytes) {
  (void)cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream_of(handle_));
}
void CudaStream::fill(void* at, int byte, std::int64_t bytes) {
  (void)cudaMemsetAsync(at, byte, static_cast<std::size_t>(bytes), stream_of(handle_));
}

Status CudaStream::wait(std::string_view what) {
  const cudaError_t done = cudaStreamSynchronize(stream_of(handle_));
  const cudaError_t earlier = cudaGetLastError();
  if (done != cudaSuccess) return cuda_error(what, done);
  if (earlier != cudaSuccess) return cuda_error(what, earlier);
  return ok();
}

void CudaStream::begin_capture() {
  (void)cudaStreamBeginCapture(stream_of(handle_), cudaStreamCaptureModeThreadLocal);
}

Result<CudaGraph> CudaStream::end_capture() {
  cudaGraph_t graph = nullptr;
  cudaError_t code = cudaStreamEndCapture(stream_of(handle_), &graph);
  cudaGraphExec_t exec = nullptr;
  if (code == cudaSuccess) code = cudaGraphInstantiate(&exec, graph, 0);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  if (code != cudaSuccess) {
    (void)cudaGetLastError();
    return cuda_error("capturing a step", code);
  }
  CudaGraph result;
  result.handle_ = exec;
  return result;
}

void CudaStream::launch(const CudaGraph& graph) {
  (void)cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle_), stream_of(handle_));
}

Result<CudaEvent> CudaEvent::create(bool is_timed) {
  cudaEvent_t handle = nullptr;
  if (const cudaError_t code = cudaEventCreateWithFlags(&handle, is_timed ? 0u : unsigned{cudaEventDisableTiming});
      code != cudaSuccess)
    return cuda_error("CUDA event", code);
  CudaEvent event;
  event.handle_ = handle;
  return event;
}
CudaEvent::CudaEvent(CudaEvent&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
CudaEvent& CudaEvent::operator=(CudaEvent&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
CudaEvent::~CudaEvent() {
  if (handle_ != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}
void CudaEvent::record(CudaStream& stream) {
  (void)cudaEventRecord(static_cast<cudaEvent_t>(handle_), stream_of(stream.handle()));
}
Status CudaEvent::wait(std::string_view what) {
  const cudaError_t done = cudaEventSynchronize(static_cast<cudaEvent_t>(handle_));
  const cudaError_t earlier = cudaGetLastError();
  if (done != cudaSuccess) return cuda_error(what, done);
  if (earlier != cudaSuccess) return cuda_error(what, earlier);
  return ok();
}
double CudaEvent::seconds_since(const CudaEvent& earlier) const {
  float ms = 0;
  if (cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier.handle_), static_cast<cudaEvent_t>(handle_)) !=
      cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return ms * 1e-3;
}

Result<CudaTimer> CudaTimer::create() {
  CudaTimer timer;
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaError_t code = cudaEventCreate(&begin);
  timer.begin_ = begin;
  if (code == cudaSuccess) code = cudaEventCreate(&end);
  timer.end_ = end;
  if (code != cudaSuccess) return cuda_error("CUDA event", code);
  return timer;
}
CudaTimer::CudaTimer(CudaTimer&& other) noexcept
    : begin_(std::exchange(other.begin_, nullptr)), end_(std::exchange(other.end_, nullptr)) {}
CudaTimer& CudaTimer::operator=(CudaTimer&& other) noexcept {
  std::swap(begin_, other.begin_);
  std::swap(end_, other.end_);
  return *this;
}
CudaTimer::~CudaTimer() {
  if (begin_ != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(begin_));
  if (end_ != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(end_));
}
void CudaTimer::start(CudaStream& stream) {
  (void)cudaEventRecord(static_cast<cudaEvent_t>(begin_), stream_of(stream.handle()));
}
void CudaTimer::stop(CudaStream& stream) {
  (void)cudaEventRecord(static_cast<cudaEvent_t>(end_), stream_of(stream.handle()));
}
double CudaTimer::milliseconds() {
  float ms = 0;
  (void)cudaEventSynchronize(static_cast<cudaEvent_t>(end_));
  (void)cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin_), static_cast<cudaEvent_t>(end_));
  return ms;
}

}  // namespace still
