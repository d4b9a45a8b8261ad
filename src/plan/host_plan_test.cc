// The plan of a model that is not here equals what the loader lays out for the file, to the byte.
#include "plan/host_plan.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "files/checkpoint.h"
#include "models/registry.h"
#include "plan/plan_data.h"

namespace still {
namespace {

void expect_layout_equals_plan(const std::string& path) {
  SCOPED_TRACE(path);
  auto checkpoint = Checkpoint::open(path, {.allow_missing_data = true});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const Arch* arch = *find_arch(checkpoint->architecture());
  auto config = arch->read_config(checkpoint->config());
  ASSERT_TRUE(config);
  auto layout = weight_layout(*arch, *config, *checkpoint);
  ASSERT_TRUE(layout) << layout.error().message;
  auto shape = shape_from_checkpoint(*checkpoint, "model");
  ASSERT_TRUE(shape) << shape.error().message;
  auto planned = plan_host_weights(*shape, *find_quantisation("own"));
  ASSERT_TRUE(planned) << planned.error().message;
  EXPECT_EQ(planned->arena_bytes, layout->arena_bytes);
  EXPECT_EQ(planned->mapped_bytes, layout->mapped_bytes);
  // From the shape alone with the mixture rule, no tensor of the file looked at.
  auto formula = shape_from_config(shape->config, "formula");
  ASSERT_TRUE(formula);
  EXPECT_EQ(formula->n_params(), shape->n_params());
}

TEST(HostPlan, EqualsTheLoadersLayoutOfTinyModels) {
  const std::string tiny = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/";
  for (const char* name : {"llama", "llama_tied", "qwen2", "qwen2_tied"}) {
    expect_layout_equals_plan(tiny + name);
    expect_layout_equals_plan(tiny + name + "/model.gguf");
  }
}

TEST(HostPlan, EqualsTheLoadersLayoutOfARealHeader) {
  const std::string path = std::string(STILL_SOURCE_DIR) + "/testdata/files/r1-distill-qwen-7b-q4_k_m-header.gguf";
  expect_layout_equals_plan(path);
  auto checkpoint = Checkpoint::open(path, {.allow_missing_data = true});
  auto own = shape_from_checkpoint(*checkpoint, "7b");
  auto formula = find_known_shape(*read_known_models(), "7b");
  auto by_file = plan_host_weights(*own, *find_quantisation("own")),
       by_rule = plan_host_weights(*formula, *find_quantisation("q4_k_m"));
  ASSERT_TRUE(by_file && by_rule);
  EXPECT_EQ(by_file->arena_bytes, by_rule->arena_bytes);
}

TEST(HostPlan, EqualsTheLoadersLayoutOfRealModels) {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set";
  for (const char* name : {"smollm2.gguf", "q05.gguf", "q15.gguf"})
    expect_layout_equals_plan(std::string(folder) + "/" + name);
}

TEST(HostPlan, RefusesWhatTheEngineDoesNotRun) {
  const auto models = *read_known_models();
  EXPECT_FALSE(plan_host_weights(*find_known_shape(models, "r1"), *find_quantisation("q4_k_m")));
  EXPECT_FALSE(plan_host_weights(*find_known_shape(models, "7b"), *find_quantisation("gptq")));
  EXPECT_FALSE(plan_host_weights(*find_known_shape(models, "7b"), *find_quantisation("own")));
  const auto plan = plan_host_memory(*find_known_shape(models, "7b"), *find_quantisation("q4_k_m"),
                                     {.n_threads = 2, .context = 4096, .memory_limit = std::int64_t{4} << 30});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, Code::kResourceExhausted);
}

TEST(Machine, IsDetected) {
  const Machine machine = detect_machine(*built_in_devices());
  EXPECT_FALSE(machine.cpu.empty());
  EXPECT_GE(machine.n_cores, 1);
  EXPECT_GT(machine.memory_bytes, machine.available_bytes / 2);
  EXPECT_FALSE(machine.isas.empty());
  ASSERT_FALSE(machine.nodes.empty());
  EXPECT_FALSE(machine.nodes.front().cpus.empty());
  EXPECT_GT(machine.nodes.front().memory_bytes, 0);
}

// The driver's library is a stand-in, compiled here, that speaks NVML's entry points.
TEST(Machine, GpusAreFoundByNvml) {
  const std::string library = ::testing::TempDir() + "/libnvml_stub_" + std::to_string(::getpid()) + ".so";
  const std::string command =
      "cc -shared -fPIC -o '" + library + "' '" + STILL_SOURCE_DIR + "/src/plan/nvml_stub.c' 2>/dev/null";
  if (std::system(command.c_str()) != 0) GTEST_SKIP() << "no C compiler here";
  const Machine machine = detect_machine(*built_in_devices(), library.c_str());
  std::remove(library.c_str());
  ASSERT_EQ(machine.gpus.size(), 3u);  // the fourth is lost
  const DetectedGpu& first = machine.gpus[0];
  EXPECT_EQ(first.device.name, "NVIDIA A100-SXM4-80GB");
  EXPECT_EQ(first.row, "A100-80GB");
  EXPECT_EQ(first.device.usable_bytes, std::int64_t{81920} << 20);
  EXPECT_EQ(first.free_bytes, std::int64_t{80920} << 20);
  EXPECT_EQ(first.device.sm, 80);
  EXPECT_GT(first.device.bandwidth, 1.9e12);
  EXPECT_EQ(first.n_nvlinks, 12);
  EXPECT_EQ(first.links, (std::vector<std::string>{"itself", "NVLink", "other CPU"}));
  EXPECT_EQ(machine.gpus[2].row, "");
  EXPECT_EQ(machine.gpus[2].device.sm, 120);
  EXPECT_EQ(machine.gpus[2].n_nvlinks, 0);
  EXPECT_TRUE(detect_machine(*built_in_devices(), "/nowhere/libnvml.so").gpus.empty());
  EXPECT_TRUE(detect_machine(*built_in_devices(), "libc.so.6").gpus.empty());  // a library without these entry points
}

}  // namespace
}  // namespace still
