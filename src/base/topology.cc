#include "base/topology.h"

#include <fmt/core.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <numeric>
#include <set>
#include <string>

namespace still {

namespace {

// "0-3,8,10-11" to numbers; what is none ends the list.
std::vector<int> read_cpu_list(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<int> cpus;
  std::string line;
  std::getline(file, line);
  const char* at = line.data();
  const char* const end = at + line.size();
  while (at < end) {
    int first = 0, last = 0;
    auto [next, problem] = std::from_chars(at, end, first);
    if (problem != std::errc() || first < 0) break;
    last = first;
    if (next < end && *next == '-') {
      const auto parsed = std::from_chars(next + 1, end, last);
      if (parsed.ec != std::errc()) break;
      next = parsed.ptr;
    }
    for (int cpu = first; cpu <= std::min(last, CPU_SETSIZE - 1); ++cpu) cpus.push_back(cpu);
    at = next < end && *next == ',' ? next + 1 : end;
  }
  return cpus;
}

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

}  // namespace

int CpuTopology::n_cores() const {
  return std::accumulate(nodes.begin(), nodes.end(), 0,
                         [](int n, const Node& node) { return n + static_cast<int>(node.cpus.size()); });
}

CpuTopology CpuTopology::read(const std::filesystem::path& system, const std::vector<int>& allowed) {
  // One logical CPU of each core: the first that may be used.
  std::set<std::vector<int>> seen;
  std::vector<int> cores;
  for (const int cpu : allowed) {
    std::vector<int> siblings = read_cpu_list(system / fmt::format("cpu/cpu{}/topology/thread_siblings_list", cpu));
    if (siblings.empty()) siblings = {cpu};
    if (seen.insert(siblings).second) cores.push_back(cpu);
  }
  CpuTopology topology;
  std::vector<int> left = cores;
  for (const int id : read_cpu_list(system / "node/online")) {
    const std::vector<int> near = read_cpu_list(system / fmt::format("node/node{}/cpulist", id));
    Node node{.id = id, .cpus = {}};
    std::erase_if(left, [&](int cpu) {
      const bool is_near = std::find(near.begin(), near.end(), cpu) != near.end();
      if (is_near) node.cpus.push_back(cpu);
      return is_near;
    });
    if (!node.cpus.empty()) topology.nodes.push_back(std::move(node));
  }
  // Cores that no node names go to the first, so that none is lost.
  if (topology.nodes.empty() && !left.empty()) topology.nodes.push_back({});
  if (!left.empty()) {
    std::vector<int>& cpus = topology.nodes.front().cpus;
    cpus.insert(cpus.end(), left.begin(), left.end());
  }
  return topology;
}

const CpuTopology& CpuTopology::machine() {
  // Read once: a thread that is bound later would see its own CPUs only.
  static const CpuTopology topology = read("/sys/devices/system", allowed_cpus());
  return topology;
}

std::vector<ThreadPlace> place_threads(const CpuTopology& topology, int n_threads) {
  std::vector<ThreadPlace> places(static_cast<std::size_t>(std::max(n_threads, 0)));
  const int n_cores = topology.n_cores();
  if (n_threads < 1 || n_cores == 0) return places;
  const auto& nodes = topology.nodes;
  const bool is_whole = n_threads > 1 && n_threads == n_cores;
  if (nodes.size() == 1) {
    for (int i = 0; is_whole && i < n_threads; ++i)
      places[static_cast<std::size_t>(i)].cpus = {nodes[0].cpus[static_cast<std::size_t>(i)]};
    return places;
  }
  const auto largest = std::max_element(nodes.begin(), nodes.end(),
                                        [](const auto& a, const auto& b) { return a.cpus.size() < b.cpus.size(); });
  if (n_threads <= static_cast<int>(largest->cpus.size())) {
    for (ThreadPlace& place : places)
      place = {.node = static_cast<int>(largest - nodes.begin()), .cpus = largest->cpus};
    return places;
  }
  int cores_before = 0;
  for (std::size_t node = 0; node < nodes.size(); ++node) {
    const int n = static_cast<int>(nodes[node].cpus.size());
    const int begin = n_threads * cores_before / n_cores, end = n_threads * (cores_before + n) / n_cores;
    for (int i = begin; i < end; ++i) {
      ThreadPlace& place = places[static_cast<std::size_t>(i)];
      place.node = static_cast<int>(node);
      place.cpus = nodes[node].cpus;
      if (is_whole) place.cpus = {nodes[node].cpus[static_cast<std::size_t>(i - begin)]};
    }
    cores_before += n;
  }
  return places;
}

bool bind_thread(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus)
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  return !cpus.empty() && ::sched_setaffinity(0, sizeof(set), &set) == 0;
}

bool interleave_memory(void* data, std::int64_t bytes, const CpuTopology& topology) {
  if (topology.nodes.size() < 2 || data == nullptr || bytes <= 0) return false;
  // mbind(2) by number: libnuma is not needed for one call.
  constexpr int kInterleave = 3;  // MPOL_INTERLEAVE
  constexpr int kMaxNodes = 1024;
  unsigned long mask[kMaxNodes / 64] = {};
  for (const CpuTopology::Node& node : topology.nodes)
    if (node.id >= 0 && node.id < kMaxNodes) mask[node.id / 64] |= 1UL << (node.id % 64);
  return ::syscall(SYS_mbind, data, static_cast<unsigned long>(bytes), kInterleave, mask, kMaxNodes, 0UL) == 0;
}

}  // namespace still
