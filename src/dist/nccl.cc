// The few declarations needed of NCCL's stable C interface (nccl.h, version 2) stand here; a build needs no header of
// it.
#include "dist/nccl.h"

#include <dlfcn.h>

#include <type_traits>
#include <vector>

namespace still {

namespace {
using Handle = void*;                  // ncclComm_t
constexpr int kFloat32 = 7, kSum = 0;  // ncclDataType_t, ncclRedOp_t

struct Library {
  int (*init_all)(Handle* comms, int n, const int* devices);
  int (*destroy)(Handle);
  int (*all_reduce)(const void* from, void* to, std::size_t n, int type, int op, Handle, void* stream);
  int (*send)(const void* from, std::size_t n, int type, int peer, Handle, void* stream);
  int (*receive)(void* to, std::size_t n, int type, int peer, Handle, void* stream);
  int (*group_start)();
  int (*group_end)();
  const char* (*error_string)(int);

  Status load() {
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return error(Code::kUnavailable, "libnccl.so.2 is not installed");
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    if (!find(init_all, "ncclCommInitAll") || !find(destroy, "ncclCommDestroy") || !find(all_reduce, "ncclAllReduce") ||
        !find(send, "ncclSend") || !find(receive, "ncclRecv") || !find(group_start, "ncclGroupStart") ||
        !find(group_end, "ncclGroupEnd") || !find(error_string, "ncclGetErrorString"))
      return error(Code::kUnavailable, "libnccl.so.2 lacks a function that is needed");
    return ok();
  }
};

class LoadedNccl : public Nccl {
 public:
  Status create(std::span<const std::int32_t> devices) {
    STILL_TRY_STATUS(library_.load());
    comms_.resize(devices.size());
    return check(library_.init_all(comms_.data(), static_cast<int>(devices.size()), devices.data()), "starting");
  }
  ~LoadedNccl() override {
    for (const Handle comm : comms_)
      if (comm != nullptr) (void)library_.destroy(comm);
  }

  Status sum(std::int32_t rank, void* stream, float* y, std::int64_t n) override {
    return check(library_.all_reduce(y, y, static_cast<std::size_t>(n), kFloat32, kSum, comm(rank), stream), "a sum");
  }
  Status exchange(std::int32_t rank, void* stream, const float* from, std::span<float* const> to,
                  std::span<const std::int64_t> n) override {
    const auto self = static_cast<std::size_t>(rank);
    STILL_TRY_STATUS(check(library_.group_start(), "a group"));
    for (std::size_t r = 0; r < comms_.size(); ++r) {
      if (r == self) continue;
      const int peer = static_cast<int>(r);
      STILL_TRY_STATUS(check(library_.send(from, static_cast<std::size_t>(n[self]), kFloat32, peer, comm(rank), stream),
                             "sending logits"));
      STILL_TRY_STATUS(
          check(library_.receive(to[r], static_cast<std::size_t>(n[r]), kFloat32, peer, comm(rank), stream),
                "receiving logits"));
    }
    return check(library_.group_end(), "a group");
  }

 private:
  Handle comm(std::int32_t rank) const { return comms_[static_cast<std::size_t>(rank)]; }
  Status check(int code, const char* what) const {
    if (code == 0) return ok();
    return error(Code::kUnavailable, "NCCL, {}: {}", what, library_.error_string(code));
  }
  Library library_{};
  std::vector<Handle> comms_;
};
}  // namespace

Result<std::unique_ptr<Nccl>> Nccl::create(std::span<const std::int32_t> devices) {
  auto nccl = std::make_unique<LoadedNccl>();
  STILL_TRY_STATUS(nccl->create(devices));
  return std::unique_ptr<Nccl>(std::move(nccl));
}

}  // namespace still
