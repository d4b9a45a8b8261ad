/* A stand-in for the driver's NVML in tests: two A100 of 80 GB joined by NVLink, and a card that no database knows on
   the other CPU. The functions have NVML's documented C signatures. */
#include <string.h>

struct memory {
  unsigned long long total, free, used;
};
static int ids[3] = {0, 1, 2};

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* n) {
  *n = 4; /* the last is lost: its handle fails */
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** handle) {
  if (i > 2) return 15; /* NVML_ERROR_GPU_IS_LOST */
  *handle = &ids[i];
  return 0;
}
int nvmlDeviceGetName(void* handle, char* name, unsigned size) {
  strncpy(name, *(int*)handle < 2 ? "NVIDIA A100-SXM4-80GB" : "NVIDIA Experimental 5", size);
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* handle, struct memory* m) {
  m->total = (*(int*)handle < 2 ? 81920ull : 5000ull) << 20;
  m->used = 1000ull << 20;
  m->free = m->total - m->used;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void* handle, int* major, int* minor) {
  *major = *(int*)handle < 2 ? 8 : 12;
  *minor = 0;
  return 0;
}
int nvmlDeviceGetTopologyCommonAncestor(void* a, void* b, int* level) {
  *level = *(int*)a < 2 && *(int*)b < 2 ? 20 : 50;
  return 0;
}
int nvmlDeviceGetNvLinkState(void* handle, unsigned link, unsigned* is_active) {
  if (*(int*)handle > 1 || link > 11) return 3; /* NVML_ERROR_NOT_SUPPORTED */
  *is_active = 1;
  return 0;
}
