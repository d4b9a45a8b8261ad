// tensor/cuda.h in a build without CUDA: there is no device, and nothing can be created.
#include "base/check.h"
#include "tensor/cuda.h"

namespace still {

namespace {
tl::unexpected<Error> no_cuda() {
  return error(Code::kUnsupported, "this program was built without CUDA");
}
}  // namespace

std::vector<CudaDeviceInfo> list_cuda_devices(std::string* reason) {
  if (reason != nullptr) *reason = "this program was built without CUDA";
  return {};
}
std::int64_t cuda_total_memory(std::int32_t) {
  return 0;
}
Status use_cuda_device(std::int32_t) {
  return no_cuda();
}
Status enable_peer_access(std::int32_t, std::int32_t) {
  return no_cuda();
}
void copy_rows_on_device(void*, void*, std::int64_t, const void*, std::int64_t, std::int64_t, std::int64_t) {}
Status check_cuda(std::string_view) {
  return ok();
}

Result<DeviceBuffer> DeviceBuffer::create(std::int64_t, std::string_view) {
  return no_cuda();
}
DeviceBuffer::DeviceBuffer(DeviceBuffer&&) noexcept = default;
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&&) noexcept = default;
DeviceBuffer::~DeviceBuffer() = default;

Result<PinnedBuffer> PinnedBuffer::create(std::int64_t, std::string_view) {
  return no_cuda();
}
PinnedBuffer::PinnedBuffer(PinnedBuffer&&) noexcept = default;
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&&) noexcept = default;
PinnedBuffer::~PinnedBuffer() = default;

CudaGraph::CudaGraph(CudaGraph&&) noexcept = default;
CudaGraph& CudaGraph::operator=(CudaGraph&&) noexcept = default;
CudaGraph::~CudaGraph() = default;

// No stream can be created, so none of these is ever called.
Result<CudaStream> CudaStream::create() {
  return no_cuda();
}
CudaStream::CudaStream(CudaStream&&) noexcept = default;
CudaStream& CudaStream::operator=(CudaStream&&) noexcept = default;
CudaStream::~CudaStream() = default;
void CudaStream::copy_to_device(void*, const void*, std::int64_t) {
  STILL_CHECK(handle_ != nullptr);
}
void CudaStream::copy_to_host(void*, const void*, std::int64_t) {
  STILL_CHECK(handle_ != nullptr);
}
void CudaStream::copy_on_device(void*, const void*, std::int64_t) {
  STILL_CHECK(handle_ != nullptr);
}
void CudaStream::fill(void*, int, std::int64_t) {
  STILL_CHECK(handle_ != nullptr);
}
Status CudaStream::wait(std::string_view) {
  return no_cuda();
}
void CudaStream::begin_capture() {
  STILL_CHECK(handle_ != nullptr);
}
Result<CudaGraph> CudaStream::end_capture() {
  return no_cuda();
}
void CudaStream::launch(const CudaGraph&) {
  STILL_CHECK(handle_ != nullptr);
}

Result<CudaEvent> CudaEvent::create(bool) {
  return no_cuda();
}
CudaEvent::CudaEvent(CudaEvent&&) noexcept = default;
CudaEvent& CudaEvent::operator=(CudaEvent&&) noexcept = default;
CudaEvent::~CudaEvent() = default;
void CudaEvent::record(CudaStream&) {}
Status CudaEvent::wait(std::string_view) {
  return no_cuda();
}
double CudaEvent::seconds_since(const CudaEvent&) const {
  STILL_CHECK(handle_ != nullptr);
  return 0;
}

Result<CudaTimer> CudaTimer::create() {
  return no_cuda();
}
CudaTimer::CudaTimer(CudaTimer&&) noexcept = default;
CudaTimer& CudaTimer::operator=(CudaTimer&&) noexcept = default;
CudaTimer::~CudaTimer() = default;
void CudaTimer::start(CudaStream&) {}
void CudaTimer::stop(CudaStream&) {}
double CudaTimer::milliseconds() {
  return 0;
}

}  // namespace still
