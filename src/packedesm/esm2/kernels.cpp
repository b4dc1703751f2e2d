// What torch is slow at on an x86-64 CPU, for AVX-512 or AVX2: attention within each protein of a
// pack, after rotary embedding where q and k do not have it yet.
//
// Attention is softmax(q k^T / sqrt(head_dim)) v, keys in blocks with a running maximum, so that
// scores stay in the first-level cache (online softmax: Milakov & Gimelshein 2018,
// arXiv:1805.02867; as attention: Rabe & Staats 2021, arXiv:2112.05682).
//
// A vector register holds one number of as many *queries* as it has lanes. Scores of one key are
// then broadcasts of that key's numbers times vectors of queries, the softmax needs no step across
// lanes, and no head_dim leaves lanes empty (35M has 24 numbers a head). What is computed for a
// query depends on its own protein only: not on its neighbours in the pack, nor on threads.
//
// All arrays in scratch memory are in 32-bit *words*: one float32, or two bfloat16 that one
// instruction multiplies and adds (two numbers of a query or key, or one number of two keys).
//
// Compiled once for each kind of CPU, see setup.py; called by kernels.py.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
constexpr int BLOCK = 8;  // keys or numbers that share a loaded vector: 2 BLOCK sums in registers
#else
constexpr int LANES = 8;
constexpr int BLOCK = 4;
#endif
constexpr int MOST = 2 * LANES;        // queries of a tile
constexpr int KEYS = 128;              // keys of a block
constexpr int SWAP = 0b10110001;       // of the two numbers of each pair
static_assert(KEYS % BLOCK == 0 && BLOCK % 4 == 0);
constexpr int QUERIES_PER_TASK = 512;  // a long protein is shared by several threads

typedef float Vector __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }
inline Vector all(float x) { return x - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error below 2.2e-7; what is below float32's range may be 2^-126. The
// polynomial is the best of degree 5 in relative error on [-1/2, 1/2], by weighted least squares.
inline Vector exp2(Vector x) {
#ifdef __AVX512F__
  const Vector r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);  // x - round(x)
#else
  const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = x < all(-126.0f) ? all(-126.0f) : x;  // in this order a NaN stays
  const Vector shifted = x + shift;
  const Vector r = x - (shifted - shift);
#endif
  Vector p = all(1.3276472e-3f);
  p = p * r + all(9.6755415e-3f);
  p = p * r + all(5.55071328e-2f);
  p = p * r + all(2.40221197e-1f);
  p = p * r + all(6.93146967e-1f);
  p = p * r + all(1.00000007f);
#ifdef __AVX512F__
  return _mm512_scalef_ps(p, x - r);
#else
  // The integer's bits, moved to the exponent.
  return p * reinterpret_cast<Vector>((reinterpret_cast<Integers>(shifted) << 23) + (127 << 23));
#endif
}

struct Float32 {
  using Number = float;
  static constexpr int PER_WORD = 1;

  static Vector multiply_add(Vector sum, const float* word, Vector x) { return sum + *word * x; }
  // Four numbers of q or k, each pair of neighbours rotated by its phase (cosine, sine).
  static __m128 rotate(__m128 x, const float* rotary) {
    const __m128 phase = _mm_loadu_ps(rotary);
    return _mm_fmaddsub_ps(x, _mm_moveldup_ps(phase),
                           _mm_mul_ps(_mm_permute_ps(x, SWAP), _mm_movehdup_ps(phase)));
  }
  static void store_weights(float* to, const Vector (&p)[1]) { store(to, p[0]); }
  static void store_four(float* to, __m128 x) { _mm_storeu_ps(to, x); }
  static void pack_values(float* to, const float* v, int64_t, int, int head_dim) {
    std::memcpy(to, v, head_dim * sizeof(float));
  }
};

#ifdef __AVX512BF16__
struct BFloat16 {
  using Number = uint16_t;
  static constexpr int PER_WORD = 2;

  static Vector multiply_add(Vector sum, const float* word, Vector x) {
    int32_t pair;
    std::memcpy(&pair, word, 4);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)x);
  }
  // Eight numbers, computed in float32.
  static __m128 rotate(__m128 x, const float* rotary) {
    const __m256 phase = _mm256_loadu_ps(rotary), pairs = _mm256_cvtpbh_ps((__m128bh)x);
    return (__m128)_mm256_cvtneps_pbh(_mm256_fmaddsub_ps(
        pairs, _mm256_moveldup_ps(phase),
        _mm256_mul_ps(_mm256_permute_ps(pairs, SWAP), _mm256_movehdup_ps(phase))));
  }
  static void store_weights(float* to, const Vector (&p)[2]) {
    // Both rounded, first one's numbers below the other's; then each query's two beside each other.
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]);
    _mm512_store_si512(to, _mm512_permutexvar_epi16(order, rounded));
  }
  static void store_four(uint16_t* to, __m128 x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), (__m128i)_mm_cvtneps_pbh(x));
  }
  // One number of two keys to a word; where there is no second key, zeros.
  static void pack_values(float* to, const uint16_t* v, int64_t stride, int keys, int head_dim) {
    for (int d = 0; d < head_dim; d += 8, to += 8) {
      const auto at = [&](int key) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(v + key * stride + d));
      };
      const __m128i first = at(0), second = keys > 1 ? at(1) : _mm_setzero_si128();
      _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi16(first, second));
      _mm_store_si128(reinterpret_cast<__m128i*>(to + 4), _mm_unpackhi_epi16(first, second));
    }
  }
};
#endif

// One head of one protein. Rows of q, k, v are `stride` numbers apart, of rotary head_dim. Without
// rotary, q and k have been rotated.
template <class Kind>
struct Head {
  const typename Kind::Number *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  const float* rotary;
  typename Kind::Number* out;
  int64_t out_stride;
  int length;
};

// Four words of a row of q or k, rotated.
template <class Kind>
inline __m128 load_rotated(const typename Kind::Number* row, const float* rotary, int word) {
  const __m128 x = _mm_loadu_ps(reinterpret_cast<const float*>(row) + word);
  return rotary ? Kind::rotate(x, rotary + word * Kind::PER_WORD) : x;
}

// Keys and values of one head, row by row without gaps, keys padded with zeros to whole blocks.
template <class Kind, int D>
class Packed {
 public:
  static constexpr int KEY_WORDS = D / Kind::PER_WORD;

  explicit Packed(const Head<Kind>& head) {
    const size_t padded = (head.length + BLOCK - 1) / BLOCK * BLOCK;
    const size_t words = padded * KEY_WORDS;
    memory_.reset(new float[2 * words + LANES]);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    keys_ = memory_.get() + (-address / sizeof(float)) % LANES;
    values_ = keys_ + words;
    std::fill(keys_ + head.length * KEY_WORDS, values_, 0.0f);
    for (int i = 0; i < head.length; ++i) {
      const float* rotary = head.rotary ? head.rotary + i * D : nullptr;
      for (int w = 0; w < KEY_WORDS; w += 4)
        _mm_storeu_ps(keys_ + i * KEY_WORDS + w,
                      load_rotated<Kind>(head.k + i * head.k_stride, rotary, w));
    }
    for (int i = 0; i < head.length; i += Kind::PER_WORD)
      Kind::pack_values(values_ + i / Kind::PER_WORD * D, head.v + i * head.v_stride,
                        head.v_stride, head.length - i, D);
  }
  const float* key(int i) const { return keys_ + i * KEY_WORDS; }
  const float* value(int i) const { return values_ + i / Kind::PER_WORD * D; }

 private:
  std::unique_ptr<float[]> memory_;
  float *keys_, *values_;
};

// VECTORS * LANES queries of one head against all its keys.
template <class Kind, int D, int VECTORS>
class Tile {
  static constexpr int WIDTH = VECTORS * LANES;
  static constexpr int PER_WORD = Kind::PER_WORD;
  static constexpr int WORDS = D / PER_WORD;

 public:
  void attend(const Head<Kind>& head, const Packed<Kind, D>& packed, int first, int count) {
    load_queries(head, first, count);
    std::memset(sums_, 0, sizeof(sums_));
    for (int j = 0; j < VECTORS; ++j) {
      maximum_[j] = all(-std::numeric_limits<float>::infinity());
      total_[j] = Vector{};
    }
    for (int key = 0; key < head.length; key += KEYS) {
      const int keys = std::min(KEYS, head.length - key);
      for (int i = 0; i < keys; i += BLOCK) score(packed.key(key + i), scores_ + i * WIDTH);
      soften(keys);
      for (int d = 0; d < D; d += BLOCK) weigh(packed.value(key) + d, keys, sums_ + d * WIDTH);
    }
    store_result(head, first, count);
  }

 private:
  // Turn rows of words into vectors of queries; the last query stands in for missing ones.
  void load_queries(const Head<Kind>& head, int first, int count) {
    for (int i = 0; i < WIDTH; i += 4) {
      for (int w = 0; w < WORDS; w += 4) {
        __m128 x[4];
        for (int r = 0; r < 4; ++r) {
          const int row = first + std::min(i + r, count - 1);
          const float* rotary = head.rotary ? head.rotary + row * D : nullptr;
          x[r] = load_rotated<Kind>(head.q + row * head.q_stride, rotary, w);
        }
        _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
        for (int r = 0; r < 4; ++r) _mm_store_ps(queries_ + (w + r) * WIDTH + i, x[r]);
      }
    }
  }

  // Sums of BLOCK rows of words, each word times a vector of queries. ROW words lie between rows,
  // WORD between the words of a row, NEXT numbers between the vectors.
  template <int ROW, int WORD, int NEXT>
  [[gnu::always_inline]] static void multiply(const float* words, const float* vectors, int count,
                                              Vector (&sum)[BLOCK][VECTORS]) {
#pragma GCC unroll 2
    for (int n = 0; n < count; ++n, words += WORD, vectors += NEXT) {
      Vector x[VECTORS];
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) x[j] = load(vectors + j * LANES);
#pragma GCC unroll 8
      for (int i = 0; i < BLOCK; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < VECTORS; ++j)
          sum[i][j] = Kind::multiply_add(sum[i][j], words + i * ROW, x[j]);
    }
  }

  // Scalar products of BLOCK keys with the queries.
  [[gnu::noinline]] void score(const float* key, float* scores) const {
    Vector sum[BLOCK][VECTORS] = {};
    multiply<WORDS, 1, WIDTH>(key, queries_, WORDS, sum);
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) store(scores + i * WIDTH + j * LANES, sum[i][j]);
  }

  // Scores become weights, 2^((score - maximum) log2(e) / sqrt(D)), in place.
  void soften(int keys) {
    const Vector scale = all(1.4426950408889634 / __builtin_sqrt(double(D)));
    for (int j = 0; j < VECTORS; ++j) {
      float* scores = scores_ + j * LANES;
      Vector maximum = load(scores);
      for (int i = 1; i < keys; ++i) maximum = larger(load(scores + i * WIDTH), maximum);
      // Rounded once, here: earlier and later weights must be relative to the same number.
      const Vector scaled = larger(maximum * scale, maximum_[j]);
      shrink_[j] = exp2(maximum_[j] - scaled);
      maximum_[j] = scaled;
      Vector total = {};
      for (int i = 0; i < keys; i += PER_WORD) {
        Vector weights[PER_WORD];
        for (int r = 0; r < PER_WORD; ++r) {
          weights[r] = exp2(load(scores + (i + r) * WIDTH) * scale - scaled);
          if (i + r >= keys) weights[r] = Vector{};
          total += weights[r];
        }
        Kind::store_weights(scores + i * WIDTH, weights);
      }
      total_[j] = total_[j] * shrink_[j] + total;
    }
  }

  // Add to BLOCK sums the values of these keys by their weights. A block is summed by itself
  // first: rounding errors then grow with the number of blocks, not of keys.
  [[gnu::noinline]] void weigh(const float* value, int keys, float* sums) const {
    Vector sum[BLOCK][VECTORS] = {};
    const int words = (keys + PER_WORD - 1) / PER_WORD;
    multiply<1, D, PER_WORD * WIDTH>(value, scores_, words, sum);
#pragma GCC unroll 8
    for (int d = 0; d < BLOCK; ++d)
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) {
        float* at = sums + d * WIDTH + j * LANES;
        store(at, load(at) * shrink_[j] + sum[d][j]);
      }
  }

  void store_result(const Head<Kind>& head, int first, int count) {
    for (int j = 0; j < VECTORS; ++j) store(scores_ + j * LANES, all(1.0f) / total_[j]);
    for (int i = 0; i < count; i += 4) {
      const __m128 factor = _mm_load_ps(scores_ + i);
      for (int d = 0; d < D; d += 4) {
        __m128 x[4];
        for (int r = 0; r < 4; ++r)
          x[r] = _mm_mul_ps(_mm_load_ps(sums_ + (d + r) * WIDTH + i), factor);
        _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
        for (int r = 0; r < std::min(4, count - i); ++r)
          Kind::store_four(head.out + (first + i + r) * head.out_stride + d, x[r]);
      }
    }
  }

  alignas(64) float queries_[WORDS * WIDTH];
  alignas(64) float scores_[KEYS * WIDTH];  // then weights
  alignas(64) float sums_[D * WIDTH];       // of weighted values, by number and query
  Vector maximum_[VECTORS];  // of the scores so far, in units of the exponent
  Vector total_[VECTORS];    // of weights
  Vector shrink_[VECTORS];   // what a block makes of earlier weights
};

template <class Kind, int D>
void attend_head(const Head<Kind>& head, int first, int last) {
  const Packed<Kind, D> packed(head);
  Tile<Kind, D, 2> wide;
  Tile<Kind, D, 1> narrow;
  for (; first < last; first += MOST) {
    const int count = std::min(MOST, last - first);
    if (count > LANES)
      wide.attend(head, packed, first, count);
    else
      narrow.attend(head, packed, first, count);
  }
}

template <class Kind, int D>
void attend_pack(const typename Kind::Number* q, const typename Kind::Number* k,
                 const typename Kind::Number* v, int64_t q_stride, int64_t k_stride,
                 int64_t v_stride, const float* rotary, const int32_t* cu_seqlens, int sequences,
                 int heads, typename Kind::Number* out, int threads) {
  struct Task {
    int sequence, head, first;
  };
  std::vector<Task> tasks;
  for (int s = 0; s < sequences; ++s)
    for (int h = 0; h < heads; ++h)
      for (int i = 0; i < cu_seqlens[s + 1] - cu_seqlens[s]; i += QUERIES_PER_TASK)
        tasks.push_back({s, h, i});
  const int64_t out_stride = int64_t(heads) * D;
  // By the threads of torch's OpenMP, which is loaded already and has the same name.
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t i = 0; i < tasks.size(); ++i) {
    const Task task = tasks[i];
    const int64_t row = cu_seqlens[task.sequence], column = int64_t(task.head) * D;
    const int length = cu_seqlens[task.sequence + 1] - cu_seqlens[task.sequence];
    const Head<Kind> head = {q + row * q_stride + column,
                             k + row * k_stride + column,
                             v + row * v_stride + column,
                             q_stride,
                             k_stride,
                             v_stride,
                             rotary ? rotary + row * D : nullptr,
                             out + row * out_stride + column,
                             out_stride,
                             length};
    attend_head<Kind, D>(head, task.first, std::min(length, task.first + QUERIES_PER_TASK));
  }
}

// Returns 1 where there is nothing for this head_dim.
template <class Kind, class... Arguments>
int attend(int head_dim, Arguments... arguments) {
  switch (head_dim) {
    case 16: return attend_pack<Kind, 16>(arguments...), 0;
    case 24: return attend_pack<Kind, 24>(arguments...), 0;
    case 32: return attend_pack<Kind, 32>(arguments...), 0;
    case 64: return attend_pack<Kind, 64>(arguments...), 0;
    case 128: return attend_pack<Kind, 128>(arguments...), 0;
    default: return 1;
  }
}

}  // namespace

extern "C" {

const char* source_digest() { return SOURCE_DIGEST; }

int attend_float32(int head_dim, const float* q, const float* k, const float* v, int64_t q_stride,
                   int64_t k_stride, int64_t v_stride, const float* rotary,
                   const int32_t* cu_seqlens, int sequences, int heads, float* out, int threads) {
  return attend<Float32>(head_dim, q, k, v, q_stride, k_stride, v_stride, rotary, cu_seqlens,
                         sequences, heads, out, threads);
}

#ifdef __AVX512BF16__
int has_bfloat16() { return __builtin_cpu_supports("avx512bf16") != 0; }

int attend_bfloat16(int head_dim, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                    int64_t q_stride, int64_t k_stride, int64_t v_stride, const float* rotary,
                    const int32_t* cu_seqlens, int sequences, int heads, uint16_t* out,
                    int threads) {
  return attend<BFloat16>(head_dim, q, k, v, q_stride, k_stride, v_stride, rotary, cu_seqlens,
                          sequences, heads, out, threads);
}
#else
int has_bfloat16() { return 0; }
#endif
}
