// Products in int8 on an x86-64 CPU, with the steps around them: LayerNorm and quantising on the way
// in, bias, GELU, addition and quantising again on the way out. No numbers in between go to memory.
//
// Weights have a scale for each output, tokens one each; both are symmetric, -127 to 127. Products
// are summed in 32-bit integers: exactly, whatever the numbers are (127 * 127 * 133,000 < 2^31), and
// so the same on every CPU. All float32 steps are written out operation by operation, without
// contraction, in vectors of one size: they too give the same bits by every library compiled of
// this. What is computed for a token depends on its own row only: not on its neighbours in the pack,
// nor on threads.
//
// With VNNI, unsigned numbers of tokens (128 added) are multiplied by weights, four at a time, and
// every sum begins at -128 times the sum of its weights. `vpdpbusd` keeps all 32 bits of each sum.
// AMX could be faster still where there is any; such CPUs have VNNI too. Without VNNI both become
// 16-bit numbers and are multiplied in pairs: `vpmaddubsw`, the usual way, would saturate.
//
// Compiled once for each kind of CPU, see setup.py; called by int8.py.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>

namespace {

constexpr int LANES = 16;  // numbers that are computed together, in two registers with AVX2
constexpr int ROWS = 6;    // tokens whose sums are in registers together
constexpr int MOST = 48;   // tokens of a task: they share the weights that are in the caches

typedef float Vector __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), may_alias));

template <class Kind, class From>
inline Kind load(const From* from) {
  Kind x;
  std::memcpy(&x, from, sizeof(Kind));
  return x;
}
template <class Kind, class To>
inline void store(To* to, const Kind& x) {
  std::memcpy(to, &x, sizeof(Kind));
}
inline Vector all(float x) { return x - Vector{}; }
inline Integers bits(Vector x) { return reinterpret_cast<Integers>(x); }
inline Vector as_floats(Integers x) { return reinterpret_cast<Vector>(x); }

// a * b + c, rounded once.
inline Vector fma(Vector a, Vector b, Vector c) {
#ifdef __AVX512F__
  return _mm512_fmadd_ps(a, b, c);
#else
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof(a));
  std::memcpy(y, &b, sizeof(b));
  std::memcpy(z, &c, sizeof(c));
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof(c));
  return c;
#endif
}

// Halves are added to each other, whichever way the lanes are stored.
inline float sum_of(Vector x) {
  float lane[LANES];
  std::memcpy(lane, &x, sizeof(x));
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// bfloat16, rounded to nearest even; NaN stays NaN.
inline Halves rounded(Vector x) {
  const Integers even = (bits(x) >> 16) & 1;
  const Integers kept = x == x ? (bits(x) + 0x7fff + even) >> 16 : Integers{} + 0x7fc0;
  return __builtin_convertvector(kept, Halves);
}
inline Vector widened(Halves x) {
  return as_floats(__builtin_convertvector(x, Integers) << 16);
}

// Exact GELU, x Phi(x), absolute error below 8e-7. Phi(x) - 1/2 is x times the polynomial of degree
// 13 in x^2 with the smallest largest error of x Phi(x), found by Lawson's algorithm (iteratively
// reweighted least squares at Chebyshev points) for |x| <= 5.25; written in t, which lies in [-1, 1],
// so that terms do not cancel. Beyond, the tail's 5.25 Phi(-5.25) = 4e-7 is left out.
inline Vector gelu(Vector x) {
  constexpr float END = 5.25f;
  constexpr float TERMS[] = {
      0.13465935f, -0.0671265945f, 0.0496451929f, -0.0397712179f, 0.0320452601f,
      -0.0249654241f, 0.018425433f, -0.0130905118f, 0.00883971527f, -0.00482707517f,
      0.00211210712f, -0.00161967787f, 0.00136216602f, -0.000450652733f};
  const Vector t = fma(x * x, all(2 / (END * END)), all(-1.0f));
  Vector p = all(TERMS[13]);
#pragma GCC unroll 13
  for (int i = 12; i >= 0; --i) p = fma(p, t, all(TERMS[i]));
  const Vector inside = x * fma(x, p, all(0.5f));
  const Vector outside = x < 0.0f ? Vector{} : x;  // a NaN stays
  return x * x < END * END ? inside : outside;
}

#ifdef __AVX512VNNI__
struct Dot {
  using Number = uint8_t;
  using Register = __m512i;
  static constexpr int STEP = 4;      // numbers of a token that are multiplied at once
  static constexpr int VECTORS = 4;   // registers of outputs
  static constexpr int OFFSET = 128;  // added to a token's numbers

  static Register weights(const int8_t* from) { return _mm512_loadu_si512(from); }
  static Register spread(const Number* from) { return _mm512_set1_epi32(load<int32_t>(from)); }
  static Register add(Register sum, Register x, Register w) {
    return _mm512_dpbusd_epi32(sum, x, w);
  }
};
#else
struct Dot {
  using Number = int16_t;
  using Register = __m256i;
  static constexpr int STEP = 2;
  static constexpr int VECTORS = 2;
  static constexpr int OFFSET = 0;

  static Register weights(const int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Register spread(const Number* from) { return _mm256_set1_epi32(load<int32_t>(from)); }
  static Register add(Register sum, Register x, Register w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  }
};
#endif
using Number = Dot::Number;
constexpr int OUTPUTS = sizeof(Dot::Register) / sizeof(int32_t);  // of a register
constexpr int PANEL = Dot::VECTORS * OUTPUTS;                     // outputs computed together

}  // namespace

extern "C" {

// The weights of a product: panels of PANEL outputs, the last one of what remains; in each, STEP
// inputs of every output, then the next STEP.
struct Product {
  const int8_t* panels;
  const int32_t* start;  // what each sum begins at
  const float *scale, *bias;
  const float* smoothing;  // that inputs are multiplied by before they are quantised, or null
  int inputs, outputs;     // both multiples of LANES
};

struct Norm {
  const float *weight, *bias;
  float epsilon;
};
}

namespace {

// Quantise `row`, which is overwritten, as `to`, each number with `offset` added; return its scale.
// One with a number that is not finite gets the scale NaN.
template <class Number>
float quantise(float* row, int count, const float* smoothing, int offset, Number* to) {
  Integers largest = {};
  for (int i = 0; i < count; i += LANES) {
    Vector x = load<Vector>(row + i);
    if (smoothing) store(row + i, x *= load<Vector>(smoothing + i));
    const Integers size = bits(x) & 0x7fffffff;  // as integers, numbers < infinity < NaN
    largest = size > largest ? size : largest;
  }
  int32_t most = 0;
  for (int i = 0; i < LANES; ++i) most = std::max(most, largest[i]);
  float size;
  std::memcpy(&size, &most, sizeof(size));
  const bool finite = size <= std::numeric_limits<float>::max();
  // 127 divided by less would be infinite: such a row becomes zeros.
  const float factor = finite && size > 1e-30f ? 127 / size : 0;
  typedef Number Numbers __attribute__((vector_size(LANES * sizeof(Number)), may_alias));
  const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  for (int i = 0; i < count; i += LANES) {
    const Integers x = bits(load<Vector>(row + i) * factor + shift) - bits(shift) + offset;
    store(to + i, __builtin_convertvector(x, Numbers));
  }
  return finite ? size / 127 : std::numeric_limits<float>::quiet_NaN();
}

// Tokens of a task, quantised, each with its scale.
class Quantised {
 public:
  explicit Quantised(int inputs)
      : stride_(inputs + 64),  // not a power of two: rows would share lines of the cache
        numbers_(new Number[MOST * stride_]()) {}

  void set(int token, float* row, const Product& product) {
    scale_[token] = quantise(row, product.inputs, product.smoothing, Dot::OFFSET,
                             numbers_.get() + token * stride_);
  }
  const Number* row(int token) const { return numbers_.get() + token * stride_; }
  int64_t stride() const { return stride_; }
  float scale(int token) const { return scale_[token]; }

 private:
  int64_t stride_;
  std::unique_ptr<Number[]> numbers_;
  float scale_[MOST] = {};
};

// LayerNorm of `row` as `to`, variance from the differences.
inline void normalise(const float* row, const Norm& norm, int width, float* to) {
  Vector sum = {}, squares = {};
  for (int i = 0; i < width; i += LANES) sum += load<Vector>(row + i);
  const float mean = sum_of(sum) / width;
  for (int i = 0; i < width; i += LANES) {
    const Vector difference = load<Vector>(row + i) - mean;
    squares = fma(difference, difference, squares);
  }
  const float deviation = __builtin_sqrtf(sum_of(squares) / width + norm.epsilon);
  for (int i = 0; i < width; i += LANES) {
    const Vector scaled = (load<Vector>(row + i) - mean) * (1 / deviation);
    store(to + i, fma(scaled, load<Vector>(norm.weight + i), load<Vector>(norm.bias + i)));
  }
}

// Sums of ROWS tokens for VECTORS registers of outputs.
template <int VECTORS>
[[gnu::noinline]] void multiply(const Number* rows, int64_t stride, const int8_t* panel,
                                const int32_t* start, int inputs, int32_t* sums) {
  using Register = Dot::Register;
  Register sum[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) sum[r][j] = load<Register>(start + j * OUTPUTS);
  for (int k = 0; k < inputs; k += Dot::STEP, panel += VECTORS * OUTPUTS * Dot::STEP) {
    Register w[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) w[j] = Dot::weights(panel + j * OUTPUTS * Dot::STEP);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const Register x = Dot::spread(rows + r * stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[r][j] = Dot::add(sum[r][j], x, w[j]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j)
      *reinterpret_cast<Register*>(sums + r * PANEL + j * OUTPUTS) = sum[r][j];
}

template <int VECTORS = Dot::VECTORS>
void multiply(int vectors, const Number* rows, int64_t stride, const int8_t* panel,
              const int32_t* start, int inputs, int32_t* sums) {
  if (vectors == VECTORS) return multiply<VECTORS>(rows, stride, panel, start, inputs, sums);
  if constexpr (VECTORS > 1)
    multiply<VECTORS - 1>(vectors, rows, stride, panel, start, inputs, sums);
}

// Give `store` token, output and LANES numbers of the product of `count` tokens, with its bias.
template <class Store>
void multiply_tokens(const Quantised& tokens, int count, const Product& product, Store store) {
  alignas(64) int32_t sums[ROWS * PANEL];
  for (int output = 0; output < product.outputs; output += PANEL) {
    const int outputs = std::min(PANEL, product.outputs - output);
    const int8_t* panel = product.panels + int64_t(output) * product.inputs;
    for (int first = 0; first < count; first += ROWS) {
      multiply(outputs / OUTPUTS, tokens.row(first), tokens.stride(), panel,
               product.start + output, product.inputs, sums);
      for (int r = 0; r < std::min(ROWS, count - first); ++r)
        for (int i = 0; i < outputs; i += LANES) {
          const Vector sum = __builtin_convertvector(load<Integers>(sums + r * PANEL + i), Vector);
          const int at = output + i;
          store(first + r, at,
                fma(sum * tokens.scale(first + r), load<Vector>(product.scale + at),
                    load<Vector>(product.bias + at)));
        }
    }
  }
}

// Call `work` with the first token and the number of tokens of each task, on as many threads; each
// has a copy of `work` and what that holds.
template <class Work>
void share(int64_t tokens, int threads, const Work& work) {
  // Tasks of whole groups of rows, as long as each thread has one.
  const int64_t rounds = (tokens + MOST * threads - 1) / (MOST * threads);
  const int64_t each = (tokens + rounds * threads - 1) / std::max<int64_t>(1, rounds * threads);
  const int64_t most = std::min<int64_t>(MOST, (each + ROWS - 1) / ROWS * ROWS);
  // By the threads of torch's OpenMP, which is loaded already and has the same name.
#pragma omp parallel num_threads(threads)
  {
    auto own = work();
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < tokens; first += most)
      own(first, int(std::min(most, tokens - first)));
  }
}

}  // namespace

extern "C" {

const char* source_digest() { return SOURCE_DIGEST; }

#ifdef __AVX512VNNI__
const char* kernel() { return "VNNI"; }
int runs_here() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#else
const char* kernel() { return "AVX2"; }
int runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

// Quantise the weights of a product, row by row of an output, and arrange them as `Product` has
// them. `smoothing` is what each input's weights are multiplied by, or null.
void pack(const float* weights, const float* smoothing, int inputs, int outputs, int8_t* panels,
          int32_t* start, float* scale, int threads) {
  share(outputs, threads, [&] {
    return [&, row = std::make_unique<float[]>(inputs),
            numbers = std::make_unique<int8_t[]>(inputs)](int64_t first, int count) {
      for (int64_t n = first; n < first + count; ++n) {
        std::memcpy(row.get(), weights + n * inputs, inputs * sizeof(float));
        scale[n] = quantise(row.get(), inputs, smoothing, 0, numbers.get());
        int32_t sum = 0;
        for (int k = 0; k < inputs; ++k) sum += numbers[k];
        start[n] = -Dot::OFFSET * sum;
        const int64_t panel = n / PANEL * PANEL, width = std::min<int64_t>(PANEL, outputs - panel);
        int8_t* to = panels + panel * inputs + (n - panel) * Dot::STEP;
        for (int k = 0; k < inputs; k += Dot::STEP, to += width * Dot::STEP)
          std::memcpy(to, &numbers[k], Dot::STEP);
      }
    };
  });
}

// What becomes of a product.
enum Way { FLOAT32, BFLOAT16, ADDED };

// The product of tokens (float32, or bfloat16), normalised first unless `norm` is null.
void linear(const void* x, int is_bfloat16, int64_t tokens, const Norm* norm,
            const Product* product, int with_gelu, void* out, int way, int threads) {
  const int inputs = product->inputs, outputs = product->outputs;
  share(tokens, threads, [&] {
    return [&, quantised = Quantised(inputs),
            row = std::make_unique<float[]>(inputs)](int64_t first, int count) mutable {
      for (int i = 0; i < count; ++i) {
        const int64_t at = (first + i) * inputs;
        if (is_bfloat16)
          for (int k = 0; k < inputs; k += LANES)
            store(&row[k], widened(load<Halves>(static_cast<const uint16_t*>(x) + at + k)));
        else
          std::memcpy(row.get(), static_cast<const float*>(x) + at, inputs * sizeof(float));
        if (norm) normalise(row.get(), *norm, inputs, row.get());
        quantised.set(i, row.get(), *product);
      }
      multiply_tokens(quantised, count, *product, [&](int token, int output, Vector value) {
        const int64_t at = (first + token) * outputs + output;
        if (with_gelu) value = gelu(value);
        if (way == BFLOAT16) return store(static_cast<uint16_t*>(out) + at, rounded(value));
        float* to = static_cast<float*>(out) + at;
        store(to, way == ADDED ? load<Vector>(to) + value : value);
      });
    };
  });
}

// x += second(gelu(first(norm(x)))).
void feed_forward(float* x, int64_t tokens, const Norm* norm, const Product* first,
                  const Product* second, int threads) {
  const int width = first->inputs, hidden = first->outputs;
  share(tokens, threads, [&] {
    return [&, narrow = Quantised(width), wide = Quantised(hidden),
            row = std::make_unique<float[]>(width),
            rows = std::make_unique<float[]>(int64_t(MOST) * hidden)](int64_t at,
                                                                      int count) mutable {
      float* own = x + at * width;
      for (int i = 0; i < count; ++i) {
        normalise(own + int64_t(i) * width, *norm, width, row.get());
        narrow.set(i, row.get(), *first);
      }
      multiply_tokens(narrow, count, *first, [&](int token, int output, Vector value) {
        store(&rows[int64_t(token) * hidden + output], gelu(value));
      });
      for (int i = 0; i < count; ++i) wide.set(i, &rows[int64_t(i) * hidden], *second);
      multiply_tokens(wide, count, *second, [&](int token, int output, Vector value) {
        float* to = own + int64_t(token) * width + output;
        store(to, load<Vector>(to) + value);
      });
    };
  });
}
}
