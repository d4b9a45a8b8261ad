#include "serve/generation_registry.h"

#include <algorithm>

#include "serve/generation.h"

namespace still {

void GenerationRegistry::add(std::shared_ptr<Generation> generation) {
  std::string id = generation->id();
  const std::lock_guard lock(mutex_);
  generations_[std::move(id)] = std::move(generation);
}

void GenerationRegistry::remove(const std::string& id) {
  std::shared_ptr<Generation> last;  // dies outside the lock
  const std::lock_guard lock(mutex_);
  const auto it = generations_.find(id);
  if (it == generations_.end()) return;
  last = std::move(it->second);
  generations_.erase(it);
}

std::shared_ptr<Generation> GenerationRegistry::find(std::string_view id) const {
  const std::lock_guard lock(mutex_);
  const auto it = generations_.find(std::string(id));
  return it == generations_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Generation>> GenerationRegistry::all() const {
  std::vector<std::shared_ptr<Generation>> generations;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, generation] : generations_) generations.push_back(generation);
  }
  std::ranges::sort(generations, {}, [](const auto& generation) { return generation->id(); });
  return generations;
}

std::int64_t GenerationRegistry::size() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>(generations_.size());
}

void GenerationRegistry::cancel_all() {
  std::vector<std::shared_ptr<Generation>> all;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, generation] : generations_) all.push_back(generation);
  }
  for (const auto& generation : all) generation->cancel();
}

}  // namespace still
