// GenerationRegistry: the generations under way by id, so that another request can steer them. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace still {

class Generation;  // serve/generation.h

class GenerationRegistry {
 public:
  void add(std::shared_ptr<Generation> generation);
  void remove(const std::string& id);
  std::shared_ptr<Generation> find(std::string_view id) const;  // null: none, or ended
  std::vector<std::shared_ptr<Generation>> all() const;         // by id
  std::int64_t size() const;
  // Each ends with its encoder's own last words. For the end of a drain.
  void cancel_all();

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Generation>> generations_;
};

}  // namespace still
