#include "plan/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

namespace still {

namespace {

Result<std::string> benchmark_of(const std::string& task) {
  if (task == "math") return std::string("aime24");
  if (task == "code") return std::string("lcb");
  if (task == "science" || task == "general") return std::string("gpqa");
  return error(Code::kInvalidArgument, "task \"{}\": expected math, code, science or general", task);
}

constexpr std::array kUsual = {"BF16", "FP8-BLOCK", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M"};

// Share of the 16-bit score that is kept; of most types nobody has published it.
std::optional<double> recovery_of(const QualityData& quality, const Quantisation& q) {
  if (q.kind == Quantisation::Kind::kPlain) return 1.0;
  const auto found = quality.recovery.find(q.name == "FP8-BLOCK" ? "FP8" : q.name);
  if (found == quality.recovery.end()) return std::nullopt;
  return found->second;
}

Result<Candidate> judge(const ClaimWorld& world, const AdviceRequest& r, const KnownModel& known, const Quantisation& q,
                        const std::string& benchmark) {
  STILL_TRY(const ModelShape shape, find_known_shape(world.models, known.name));
  Candidate c{
      .model = known.name, .title = known.title, .quantisation = q.name, .weight_bytes = weight_file_bytes(q, shape)};
  if (const auto score = world.quality.score(known.quality_key, benchmark)) {
    c.score_16_bit = *score;
    if (const auto kept = recovery_of(world.quality, q)) {
      c.has_score = true;
      c.score = *score * *kept;
    }
  }
  c.licence_ok = !r.permissive_licence || known.licence.find("Community") == std::string::npos;
  if (r.context > shape.config.max_seq_len) {
    c.reason = message("it was made for at most {} tokens of context", shape.config.max_seq_len);
    return c;
  }
  const auto parallelism = choose_parallelism(shape, q, r.devices.count);
  if (!parallelism) {
    c.reason = plain_message(parallelism.error().message);
    return c;
  }
  DeploymentSettings settings{
      .context = r.context, .concurrency = r.concurrency, .kv = r.kv, .parallelism = *parallelism};
  STILL_TRY(const FitAnswer fit, check_fit(shape, q, r.devices, settings));
  c.fits = fit.fits;
  c.max_context = fit.max_context;
  c.max_concurrency = fit.max_concurrency;
  c.reason = fit.reason;
  c.notes = fit.notes;
  if (!fit.nearest.empty()) c.nearest = fit.nearest.front();
  SpeedModel speed = make_speed_model(shape, q, r.devices.device, fit.weights, settings);
  if (!c.fits && r.host) {
    STILL_TRY(const OffloadPlan plan, plan_offload(shape, q, r.devices, r.host_capacity, settings));
    if (plan.fits) {
      c.fits = true;
      c.max_context = settings.context;
      c.max_concurrency = settings.concurrency;
      c.host_bytes = plan.host_bytes;
      c.reason = c.nearest = {};
      speed = make_offload_model(shape, q, r.devices.device, settings, plan, *r.host);
    }
  }
  const SpeedPoint point = predict_decode(speed, r.concurrency, static_cast<double>(settings.context) / 2);
  c.tok_per_s_user = point.tok_per_s_user;
  c.tok_per_s_total = point.tok_per_s_total;
  c.ttft = predict_ttft(speed, std::min<std::int64_t>(1024, settings.context), settings.chunk_tokens);
  const double wanted_rate = r.max_itl_s > 0 ? std::max(r.min_tok_per_s, 1 / r.max_itl_s) : r.min_tok_per_s;
  const bool is_prompt_fast = r.max_ttft_s <= 0 || c.ttft.value <= r.max_ttft_s;
  c.fast_enough = point.tok_per_s_user.value >= wanted_rate && is_prompt_fast;
  const double price = r.usd_per_hour.value_or(r.devices.device.price.middle() * static_cast<double>(r.devices.count));
  if (price > 0) {
    c.usd_per_million = usd_per_million(price, point.tok_per_s_total.value);
    if (c.has_score) c.usd_per_correct = usd_per_correct(r.answer_tokens, c.usd_per_million, c.score / 100);
  }
  if (c.fits && !c.licence_ok)
    c.reason = message("its licence is the base model's community licence: {}", known.licence);
  else if (c.fits && !is_prompt_fast)
    c.reason = message("about {:.1f} s until the first token, {:.1f} s are wanted", c.ttft.value, r.max_ttft_s);
  else if (c.fits && !c.fast_enough)
    c.reason = message("about {:.1f} tokens/s for a user, {:.1f} are wanted", point.tok_per_s_user.value, wanted_rate);
  return c;
}

}  // namespace

Result<Advice> advise(const ClaimWorld& world, const AdviceRequest& r) {
  STILL_TRY(const std::string benchmark, benchmark_of(r.task));
  if (r.context < 1 || r.concurrency < 1)
    return error(Code::kInvalidArgument, "context and concurrency must be 1 or more");
  Advice advice;
  for (const KnownModel& known : world.models) {
    if (!known.name.starts_with("deepseek-r1:")) continue;
    std::vector<std::string> names(kUsual.begin(), kUsual.end());
    if (!r.quantisation.empty()) names = {r.quantisation};
    for (const std::string& name : names) {
      STILL_TRY(const Quantisation q, find_quantisation(name));
      // FP8 blocks are how the large models were published.
      if (r.quantisation.empty() &&
          (q.kind == Quantisation::Kind::kBlockFp8) != (known.config.n_experts > 0 && q.name == "FP8-BLOCK"))
        continue;
      STILL_TRY(Candidate candidate, judge(world, r, known, q, benchmark));
      advice.candidates.push_back(std::move(candidate));
    }
  }
  const auto is_good = [](const Candidate& c) { return c.fits && c.fast_enough && c.licence_ok; };
  // For Chinese users the Qwen distills win a tie of two points: Llama's pre-training held little Chinese.
  const auto rank = [&](const Candidate& c) {
    return (c.has_score ? c.score : c.score_16_bit) -
           (r.language == "zh" && c.title.find("Llama") != std::string::npos ? 2.0 : 0.0);
  };
  // Half a point is below the noise of these benchmarks: there the faster one wins.
  std::stable_sort(advice.candidates.begin(), advice.candidates.end(), [&](const Candidate& a, const Candidate& b) {
    if (is_good(a) != is_good(b)) return is_good(a);
    if (static_cast<int>(rank(a) * 2) != static_cast<int>(rank(b) * 2)) return rank(a) > rank(b);
    return a.tok_per_s_user.value > b.tok_per_s_user.value;
  });
  const auto unknown = [&](Message text) { advice.unknowns.push_back(std::move(text)); };
  unknown(message("tokens of an answer: {:.0f} is assumed; measure yours (still eval)", r.answer_tokens));
  unknown(
      message("the score after quantisation is the published 16-bit score times an average loss; AIME has 30 "
              "questions, so 8 points are noise"));
  if (std::any_of(advice.candidates.begin(), advice.candidates.end(),
                  [](const Candidate& c) { return !c.has_score && c.score_16_bit > 0; }))
    unknown(message("what {} loses: no result was published, so it has no score", r.quantisation));
  unknown(message("speed is a roofline with the stated interval, not a measurement on your machine"));
  if (r.task == "general") unknown(message("no general benchmark was published for the distills: GPQA stands in"));
  if (r.language == "zh")
    unknown(
        message("Chinese: C-Eval was published for V3 (86.5) and R1 (91.8) only; of the distills those from Qwen "
                "were pre-trained on much Chinese, those from Llama on little, and no figure compares them"));
  if (r.language == "any")
    unknown(message("the users' language: the published scores are of English tasks (--language zh says more)"));
  if (!r.permissive_licence)
    unknown(message("whether you may use community licences (Llama): --permissive leaves those models out"));
  if (r.max_ttft_s <= 0 && r.max_itl_s <= 0)
    unknown(message("how long users may wait: --latency sets the time between tokens"));
  if (!r.usd_per_hour && r.devices.device.price.middle() <= 0)
    unknown(message("no price is known for {}: give --usd-per-hour", r.devices.device.name));
  if (r.devices.device.efficiency.n == 0)
    unknown(message("no measured efficiency is known for {}: the interval is wide", r.devices.device.name));
  if (r.devices.device.confidence == "low")
    unknown(message("the figures of {} are uncertain: {}", r.devices.device.name, r.devices.device.source));
  if (advice.candidates.empty() || !is_good(advice.candidates.front())) {
    advice.because.push_back(
        message("nothing of the family fits {} with a context of {}, {} at once and {:.0f} tokens/s", r.devices.label(),
                r.context, r.concurrency, r.min_tok_per_s));
    return advice;
  }
  const Candidate& best = advice.candidates.front();
  if (best.has_score)
    advice.because.push_back(
        message("{} in {} has the best published {} result that fits: {:.1f} (with {:.1f} % kept by the quantisation)",
                best.title, best.quantisation, benchmark, best.score, 100 * best.score / best.score_16_bit));
  else
    advice.because.push_back(
        message("{} has the best published {} result in 16 bits of those that fit: {:.1f}; how much "
                "of it {} keeps is not known",
                best.title, benchmark, best.score_16_bit, best.quantisation));
  advice.because.push_back(message("its weights are {}; {} tokens of context fit {} at once, up to {} sequences of {}",
                                   both_units(best.weight_bytes), best.max_context, r.concurrency, best.max_concurrency,
                                   r.context));
  advice.because.push_back(message("about {:.0f} tokens/s for a user ({:.0f} to {:.0f}), {:.0f} in all",
                                   best.tok_per_s_user.value, best.tok_per_s_user.low, best.tok_per_s_user.high,
                                   best.tok_per_s_total.value));
  advice.because.push_back(message("about {:.2f} s until the first token of a prompt of 1024 tokens", best.ttft.value));
  if (best.host_bytes > 0)
    advice.because.push_back(message("{} of it lie in host memory", both_units(best.host_bytes)));
  for (const Message& note : best.notes) advice.because.push_back(note);
  // The next step up, and why not.
  for (const Candidate& other : advice.candidates) {
    if (is_good(other) || other.score <= best.score + 0.5 || other.reason.empty()) continue;
    advice.because.push_back(message("{} in {} would score {:.1f}, but: {}", other.title, other.quantisation,
                                     other.score, other.reason.english));
    advice.because.back().chinese = message("{} in {} would score {:.1f}, but: {}", other.title, other.quantisation,
                                            other.score, other.reason.chinese)
                                        .chinese;
    break;
  }
  if (r.language == "zh" && best.title.find("Llama") != std::string::npos)
    advice.because.push_back(message("for Chinese users look at the best Qwen distill of the list too"));
  if (best.usd_per_million > 0)
    advice.because.push_back(
        message("${:.2f} a million tokens, ${:.4f} a correct answer", best.usd_per_million, best.usd_per_correct));
  return advice;
}

}  // namespace still
