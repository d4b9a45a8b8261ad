#include "base/topology.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cstring>
#include <fstream>
#include <string>

namespace still {
namespace {

// A made-up /sys/devices/system.
class FakeSystem {
 public:
  FakeSystem() {
    std::string name = (std::filesystem::temp_directory_path() / "still_topology_XXXXXX").string();
    root = ::mkdtemp(name.data());
  }
  ~FakeSystem() { std::filesystem::remove_all(root); }
  FakeSystem(const FakeSystem&) = delete;
  FakeSystem& operator=(const FakeSystem&) = delete;
  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text << '\n';
  }
  std::filesystem::path root;
};

std::vector<int> up_to(int n) {
  std::vector<int> cpus;
  for (int i = 0; i < n; ++i) cpus.push_back(i);
  return cpus;
}

std::vector<int> nodes_of(const std::vector<ThreadPlace>& places) {
  std::vector<int> nodes;
  for (const ThreadPlace& place : places) nodes.push_back(place.node);
  return nodes;
}

TEST(CpuTopology, ReadsNodesAndOneCpuOfEachCore) {
  const FakeSystem system;
  system.write("node/online", "0,2");
  system.write("node/node0/cpulist", "0-1,4-5");
  system.write("node/node2/cpulist", "2-3,6-7");
  for (int cpu = 0; cpu < 8; ++cpu)
    system.write("cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list",
                 std::to_string(cpu % 4) + "," + std::to_string(cpu % 4 + 4));
  const CpuTopology all = CpuTopology::read(system.root, up_to(8));
  ASSERT_EQ(all.nodes.size(), 2u);
  EXPECT_EQ(all.nodes[0].cpus, (std::vector<int>{0, 1}));
  EXPECT_EQ(all.nodes[1].cpus, (std::vector<int>{2, 3}));
  EXPECT_EQ(all.nodes[1].id, 2);
  EXPECT_EQ(all.n_cores(), 4);
  // What the process may not use is not there.
  const CpuTopology some = CpuTopology::read(system.root, {5, 6, 7});
  ASSERT_EQ(some.nodes.size(), 2u);
  EXPECT_EQ(some.nodes[0].cpus, std::vector<int>{5});
  EXPECT_EQ(some.nodes[1].cpus, (std::vector<int>{6, 7}));
  const CpuTopology one = CpuTopology::read(system.root, {0, 1});
  EXPECT_EQ(one.nodes.size(), 1u);
}

TEST(CpuTopology, WithoutFilesAllCoresAreOneNode) {
  const FakeSystem system;
  const CpuTopology topology = CpuTopology::read(system.root, up_to(3));
  ASSERT_EQ(topology.nodes.size(), 1u);
  EXPECT_EQ(topology.nodes[0].cpus, up_to(3));
  system.write("node/online", "0-x,,");
  system.write("node/node0/cpulist", "1-");
  EXPECT_EQ(CpuTopology::read(system.root, up_to(3)).n_cores(), 3) << "no core is lost to a strange file";
  EXPECT_EQ(CpuTopology::read(system.root, {}).n_cores(), 0);
}

TEST(CpuTopology, OfThisMachineHasACore) {
  EXPECT_GE(CpuTopology::machine().n_cores(), 1);
  EXPECT_EQ(&CpuTopology::machine(), &CpuTopology::machine());
}

TEST(PlaceThreads, FillsANodeBeforeItTakesAnother) {
  const CpuTopology two{{{0, {0, 1, 2, 3}}, {1, {4, 5, 6, 7}}}};
  EXPECT_EQ(nodes_of(place_threads(two, 3)), (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(place_threads(two, 3)[2].cpus, (std::vector<int>{0, 1, 2, 3})) << "bound to the node, not to a core";
  EXPECT_EQ(nodes_of(place_threads(two, 6)), (std::vector<int>{0, 0, 0, 1, 1, 1}));
  const auto whole = place_threads(two, 8);
  EXPECT_EQ(nodes_of(whole), (std::vector<int>{0, 0, 0, 0, 1, 1, 1, 1}));
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(whole[i].cpus, std::vector<int>{static_cast<int>(i)});
  // More threads than cores: still in proportion.
  EXPECT_EQ(nodes_of(place_threads(two, 12)), (std::vector<int>{0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1}));
}

TEST(PlaceThreads, UnequalNodesGetTheirShare) {
  const CpuTopology unequal{{{0, {0}}, {3, {1, 2, 3}}}};
  EXPECT_EQ(nodes_of(place_threads(unequal, 3)), (std::vector<int>{1, 1, 1})) << "the larger node holds all";
  EXPECT_EQ(nodes_of(place_threads(unequal, 4)), (std::vector<int>{0, 1, 1, 1}));
  EXPECT_EQ(nodes_of(place_threads(unequal, 8)), (std::vector<int>{0, 0, 1, 1, 1, 1, 1, 1}));
}

TEST(PlaceThreads, OneNodeIsPinnedOnlyWhenTheTeamIsTheMachine) {
  const CpuTopology one{{{0, {0, 2}}}};
  EXPECT_EQ(place_threads(one, 2)[1].cpus, std::vector<int>{2});
  EXPECT_TRUE(place_threads(one, 1)[0].cpus.empty());
  EXPECT_TRUE(place_threads(one, 3)[0].cpus.empty());
  EXPECT_TRUE(place_threads(one, 0).empty());
  EXPECT_EQ(place_threads(CpuTopology{}, 2).size(), 2u);
}

TEST(InterleaveMemory, IsRefusedQuietlyWhereThereIsNoSuchNode) {
  constexpr std::int64_t kBytes = 1 << 20;
  void* data = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(data, MAP_FAILED);
  EXPECT_FALSE(interleave_memory(data, kBytes, CpuTopology{{{0, {0}}}})) << "one node: nothing to spread";
  interleave_memory(data, kBytes, CpuTopology{{{0, {0}}, {1023, {1}}}});
  interleave_memory(nullptr, 0, CpuTopology{{{0, {0}}, {1, {1}}}});
  std::memset(data, 1, kBytes);  // usable in any case
  ::munmap(data, kBytes);
}

}  // namespace
}  // namespace still
