#include "serve/embedding.h"

#include <algorithm>

#include "serve/auth.h"
#include "serve/context.h"
#include "serve/model_use.h"

namespace still {

namespace {
constexpr std::size_t kMaxWaiting = 512, kMaxKept = 4;

Result<Embeddings> compute(Embedder& embedder, const EmbedInput& input) {
  return input.ids.empty() ? embedder.embed(input.texts, input.options)
                           : embedder.embed_tokens(input.ids, input.options);
}
}  // namespace

EmbeddingService::~EmbeddingService() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void EmbeddingService::post(std::function<void(bool)> job) {
  {
    const std::lock_guard lock(mutex_);
    if (!is_stopping_ && jobs_.size() < kMaxWaiting) {
      jobs_.push_back(std::move(job));
      if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
      wake_.notify_one();
      return;
    }
  }
  job(true);
}

void EmbeddingService::run() {
  while (true) {
    std::function<void(bool)> job;
    bool is_stopping = false;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return is_stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      is_stopping = is_stopping_;
    }
    job(is_stopping);
  }
}

Result<std::shared_ptr<Embedder>> EmbeddingService::encoder_at(const std::filesystem::path& path, int n_threads) {
  const auto found = std::find_if(kept_.begin(), kept_.end(),
                                  [&](const Kept& kept) { return kept.is_encoder && kept.key == path.string(); });
  if (found != kept_.end()) {
    kept_.splice(kept_.begin(), kept_, found);
    return found->embedder;
  }
  STILL_TRY(std::shared_ptr<Embedder> embedder, Embedder::create(path, {.n_threads = n_threads}));
  kept_.push_front({.key = path.string(), .embedder = embedder, .is_encoder = true});
  if (kept_.size() > kMaxKept) kept_.pop_back();
  return embedder;
}

Result<std::shared_ptr<Embedder>> EmbeddingService::decoder_of(const std::shared_ptr<const Model>& model,
                                                               int n_threads) {
  // An embedder keeps its model; one whose model nobody else has is let go.
  kept_.remove_if([&](const Kept& kept) {
    const auto alive = kept.model.lock();
    return !kept.is_encoder && alive != model && alive.use_count() <= 2;
  });
  const auto found = std::find_if(kept_.begin(), kept_.end(),
                                  [&](const Kept& kept) { return !kept.is_encoder && kept.model.lock() == model; });
  if (found != kept_.end()) return found->embedder;
  STILL_TRY(std::shared_ptr<Embedder> embedder, Embedder::create(model, {.n_threads = n_threads}));
  kept_.push_front({.model = model, .embedder = embedder});
  if (kept_.size() > kMaxKept) kept_.pop_back();
  return embedder;
}

void EmbeddingService::embed(ServeContext& context, EmbedInput input, std::function<void(Result<Embeddings>)> done) {
  const int n_threads = context.options.engine.n_threads;
  done = [done = std::move(done), auth = context.auth, user = input.user](Result<Embeddings> made) {
    if (made && auth != nullptr) auth->count_tokens(user, made->n_tokens);
    done(std::move(made));
  };
  const auto busy = [](const std::function<void(Result<Embeddings>)>& told) {
    told(error(Code::kUnavailable, "server busy, please try again.  maximum pending requests exceeded"));
  };
  const Result<Library> library = open_library(context);
  if (!library) return done(tl::unexpected(library.error()));
  const Result<LibraryModel> model = library->find_stored(input.model.name);
  if (!model) {
    const bool is_absent = model.error().code == Code::kNotFound || model.error().code == Code::kInvalidArgument;
    return done(is_absent ? error(Code::kNotFound, "{}", library->not_found_sentence(input.model.name))
                          : tl::unexpected(model.error()));
  }
  const auto checkpoint = Checkpoint::open(model->path);
  if (!checkpoint) return done(tl::unexpected(checkpoint.error()));
  if (is_encoder(*checkpoint)) {
    post([this, path = model->path, input = std::move(input), done = std::move(done), n_threads, busy](bool is_over) {
      if (is_over) return busy(done);
      Result<std::shared_ptr<Embedder>> embedder = encoder_at(path, n_threads);
      done(embedder ? compute(**embedder, input) : Result<Embeddings>(tl::unexpected(embedder.error())));
    });
    return;
  }
  ModelWish wish = input.model;
  use_model(context, std::move(wish),
            [this, input = std::move(input), done = std::move(done), n_threads,
             busy](Result<std::shared_ptr<ModelLease>> lease) mutable {
              if (!lease) return done(tl::unexpected(lease.error()));
              post([this, lease = std::move(*lease), input = std::move(input), done = std::move(done), n_threads,
                    busy](bool is_over) {
                if (is_over) return busy(done);
                Result<std::shared_ptr<Embedder>> embedder = decoder_of(lease->model().model, n_threads);
                done(embedder ? compute(**embedder, input) : Result<Embeddings>(tl::unexpected(embedder.error())));
              });
            });
}

}  // namespace still
