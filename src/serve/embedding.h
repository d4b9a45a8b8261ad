// EmbeddingService: texts to vectors for every API. Work is done on one thread of its own, one request after the other
// (an embedder uses all cores); encoders are kept here, decoders are those of the pool.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/embedder.h"
#include "hub/library.h"
#include "serve/model_pool.h"

namespace still {

struct ServeContext;

struct EmbedInput {
  ModelWish model;
  std::vector<std::string> texts;         // either
  std::vector<std::vector<TokenId>> ids;  // or; both empty: no vectors
  EmbedOptions options;
  std::string user;  // the API key's name: its tokens are counted
};

class EmbeddingService {
 public:
  EmbeddingService() = default;
  ~EmbeddingService();  // what waits is refused
  EmbeddingService(const EmbeddingService&) = delete;
  EmbeddingService& operator=(const EmbeddingService&) = delete;

  // `done` is called once, on a thread of the service or of the pool. kNotFound for an unknown model; kUnavailable
  // where too many wait; else as Embedder::embed.
  void embed(ServeContext& context, EmbedInput input, std::function<void(Result<Embeddings>)> done);

 private:
  struct Kept {
    std::string key;  // path of an encoder; address of a decoder
    std::weak_ptr<const Model> model;
    std::shared_ptr<Embedder> embedder;
    bool is_encoder = false;
  };
  void post(std::function<void(bool is_stopping)> job);
  void run();
  Result<std::shared_ptr<Embedder>> encoder_at(const std::filesystem::path& path, int n_threads);
  Result<std::shared_ptr<Embedder>> decoder_of(const std::shared_ptr<const Model>& model, int n_threads);

  std::list<Kept> kept_;  // the last used first; only the service's thread

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void(bool)>> jobs_;
  bool is_stopping_ = false;
  std::thread thread_;
};

}  // namespace still
