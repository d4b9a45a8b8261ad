#include "serve/model_use.h"

#include <mutex>
#include <utility>

#include "serve/auth.h"

namespace still {

namespace {
// The ticket lives until the callback came.
struct Pending {
  std::mutex mutex;
  std::shared_ptr<void> ticket;
  bool is_done = false;
};
}  // namespace

void use_model(ServeContext& context, ModelWish wish, std::function<void(Result<std::shared_ptr<ModelLease>>)> use) {
  const auto pending = std::make_shared<Pending>();
  std::shared_ptr<void> ticket = context.pool->acquire(
      std::move(wish), [pending, use = std::move(use)](Result<std::shared_ptr<ModelLease>> lease) {
        std::shared_ptr<void> old;
        {
          const std::lock_guard lock(pending->mutex);
          pending->is_done = true;
          old = std::move(pending->ticket);
        }
        if (!lease && lease.error().code == Code::kResourceExhausted)
          use(tl::unexpected(Error{Code::kInternal, lease.error().message}));
        else
          use(std::move(lease));
      });
  const std::lock_guard lock(pending->mutex);
  if (!pending->is_done) pending->ticket = std::move(ticket);
}

bool may_change_models(const ServeContext& context, const HttpRequest& request) {
  return request.key.empty() || context.auth == nullptr || context.auth->is_admin(request.key);
}

std::string limit_wish(const ServeContext& context, const HttpRequest& request, ModelWish& wish) {
  if (may_change_models(context, request)) return {};
  wish.is_bound = true;
  const auto asked = std::exchange(wish.keep_alive, std::nullopt);
  const std::chrono::nanoseconds own = context.options.keep_alive;
  const bool is_same = !asked || *asked == own || (asked->count() < 0 && own.count() < 0);
  return is_same ? "" : "keep_alive was ignored: this API key may not choose how long models stay";
}

Result<Library> open_library(const ServeContext& context) {
  return Library::open({.store = context.options.models, .ollama = context.options.ollama_models});
}

Result<std::string> model_or_default(ServeContext& context, std::string_view name) {
  if (!name.empty()) return std::string(name);
  // The one that stays longest was used last.
  const LoadedModelInfo* latest = nullptr;
  const std::vector<LoadedModelInfo> loaded = context.pool->loaded();
  for (const LoadedModelInfo& info : loaded)
    if (latest == nullptr || !info.expires_at || (latest->expires_at && *info.expires_at > *latest->expires_at))
      latest = &info;
  if (latest != nullptr) return latest->name;
  STILL_TRY(const Library library, open_library(context));
  const LibraryListing listing = library.list();
  if (listing.models.size() == 1) return listing.models.front().name;
  return error(Code::kInvalidArgument, "field \"model\" is required");
}

}  // namespace still
