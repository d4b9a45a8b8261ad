// For tests: a model folder whose safetensors file has a header and no data.
#pragma once

#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/json.h"
#include "plan/model_shape.h"

namespace still {

class FakeModel {
 public:
  explicit FakeModel(JsonObject config) : config_(std::move(config)) {
    std::string pattern = (std::filesystem::temp_directory_path() / "still-fake-XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~FakeModel() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  FakeModel(const FakeModel&) = delete;
  FakeModel& operator=(const FakeModel&) = delete;

  // dtype: BF16, F16, F32, I32, F8_E4M3.
  void tensor(const std::string& name, const std::string& dtype, const std::vector<std::int64_t>& shape) {
    std::int64_t bytes = dtype == "F8_E4M3" ? 1 : dtype == "F32" || dtype == "I32" ? 4 : 2;
    JsonArray sizes;
    for (const std::int64_t n : shape) {
      bytes *= n;
      sizes.emplace_back(n);
    }
    header_[name] =
        JsonObject{{"dtype", dtype}, {"shape", std::move(sizes)}, {"data_offsets", JsonArray{at_, at_ + bytes}}};
    at_ += bytes;
  }
  Result<ModelShape> shape() const {
    std::ofstream(path_ / "config.json") << to_json(config_);
    std::string text = to_json(header_);
    while (text.size() % 8 != 0) text += ' ';
    const std::uint64_t size = text.size();
    {
      std::ofstream file(path_ / "model.safetensors", std::ios::binary);
      file.write(reinterpret_cast<const char*>(&size), 8);
      file << text;
    }
    STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(path_, {.allow_missing_data = true}));
    return shape_from_checkpoint(checkpoint, "fake");
  }

 private:
  JsonObject config_, header_;
  std::int64_t at_ = 0;
  std::filesystem::path path_;
};

}  // namespace still
