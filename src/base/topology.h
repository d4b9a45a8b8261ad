// CpuTopology: which cores this process may use and which memory is near to them (NUMA nodes). Read from the system,
// or made up by a test: everything that places threads and memory takes one, so a machine of one node can be told that
// it is two.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace still {

struct CpuTopology {
  struct Node {
    int id = 0;             // the system's number
    std::vector<int> cpus;  // logical CPUs, one of each physical core
  };
  std::vector<Node> nodes;  // those with cores that may be used; at least one where any may

  int n_cores() const;
  // From /sys/devices/system: cores of `allowed` (logical CPUs), by node. Without files of nodes all are one.
  static CpuTopology read(const std::filesystem::path& system, const std::vector<int>& allowed);
  // This machine, as far as this process could use it when it began.
  static const CpuTopology& machine();
};

// Where one thread of a team runs.
struct ThreadPlace {
  int node = 0;           // index into CpuTopology::nodes
  std::vector<int> cpus;  // the CPUs it is bound to; empty: left to the system
};

// Places of a team. It lies on one node where it fits there; otherwise on all, in proportion to their cores, the
// threads of a node one after the other. A team as large as the machine has a core for each thread. A smaller one is
// bound to its nodes at most: with a core for each, two processes could share cores beside idle ones.
std::vector<ThreadPlace> place_threads(const CpuTopology& topology, int n_threads);

// Binds the calling thread; false where the system refuses, and it stays where it was.
bool bind_thread(const std::vector<int>& cpus);

// Spreads the pages of `bytes` bytes evenly over the nodes, those that are not yet touched. False: the system refuses,
// or there is only one node.
bool interleave_memory(void* data, std::int64_t bytes, const CpuTopology& topology = CpuTopology::machine());

}  // namespace still
