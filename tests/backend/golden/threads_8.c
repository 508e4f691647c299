/* m: x f32[1, 5, 16] -> first f32[1, 1, 16]. Made by butterflyc; do not edit. */
#include "m.h"

#include <string.h>

extern const unsigned char m_weights[];
void m_k_layer_norm_6dd18061(const void *, const void *, const void *, void *);
void m_k_linear_a1471c1f(const void *, const void *, void *);
void m_k_attention_fe18df76(const void *, void *, void *, void *, void *);
void m_k_linear_f9f1b914(const void *, const void *, void *);
void m_k_pointwise_29a347bc(const void *, const void *, void *);
void m_k_move_b7615e8e(const void *, void *);
void m_k_layer_norm_ad7b0c73(const void *, const void *, const void *, void *);
void m_k_linear_67b8419e(const void *, const void *, void *);
void m_k_attention_heads_de496b9e(const void *, void *, void *, void *, void *, int32_t);
void m_k_linear_59f9891b(const void *, const void *, void *);
void m_k_pointwise_5bac0f19(const void *, const void *, void *);

int m_run(const void *const *in, void *const *out, void *arena) {
  unsigned char *const a = (unsigned char *)arena;
  const unsigned char *const w = m_weights;
  (void)a, (void)w;
  if (in == 0 || out == 0 || (arena == 0 && 1664 > 0)) return -1;
  if ((uintptr_t)arena % 64 != 0) return -2;
  /* %normed = layer_norm(%x, %norm.w, %norm.b) {eps = 1e-05} : f32[1, 5, 16] */
  m_k_layer_norm_6dd18061(in[0], w + 0, w + 64, a + 960);
  /* %qkv = linear(%normed, %qkv.w) {activation = "none"} : f32[1, 5, 48] */
  m_k_linear_a1471c1f(a + 960, w + 128, a + 0);
  /* %heads = qkv_attention(%qkv) {heads = 2, scale = 0.5, causal = false} : f32[1, 5, 16] */
  m_k_attention_fe18df76(a + 0, a + 960, a + 1280, a + 1536, a + 1600);
  /* %out = linear(%heads, %out.w) {activation = "none"} : f32[1, 5, 16] */
  m_k_linear_f9f1b914(a + 960, w + 3200, a + 0);
  /* %y = add(%x, %out) : f32[1, 5, 16] */
  m_k_pointwise_29a347bc(in[0], a + 0, a + 320);
  /* %first = slice(%y) {axis = 1, start = 0, stop = 1, step = 1} : f32[1, 1, 16] */
  m_k_move_b7615e8e(a + 320, out[0]);
  return 0;
}

int m_predict(const float *input, float *output, void *arena) {
  const void *const in[1] = {input};
  void *const out[1] = {output};
  return m_run(in, out, arena);
}

/* For several threads: what they compute, phase by phase; part 0 does what has no parts. */
struct call {
  const void *const *in;
  void *const *out;
  unsigned char *arena;
};

void m_pool_run(m_pool *pool, void (*phase)(const void *, int), const void *data,
    int parts);

static void phase_0(const void *data, int part) {
  const struct call *const call = (const struct call *)data;
  const void *const *const in = call->in;
  void *const *const out = call->out;
  unsigned char *const a = call->arena;
  unsigned char *const t = a + 1664 + (size_t)part * 384;
  const unsigned char *const w = m_weights;
  (void)in, (void)out, (void)a, (void)t, (void)w;
  if (part < 5) { /* 5 rows: 5 parts of 1 */
    const int row = part;
    /* %normed = layer_norm(%x, %norm.w, %norm.b) {eps = 1e-05} : f32[1, 5, 16] */
    m_k_layer_norm_ad7b0c73((const unsigned char *)in[0] + row * 64, w + 0, w + 64, a + 960 + row * 64);
    /* %qkv = linear(%normed, %qkv.w) {activation = "none"} : f32[1, 5, 48] */
    m_k_linear_67b8419e(a + 960 + row * 64, w + 128, a + 0 + row * 192);
  }
}

static void phase_1(const void *data, int part) {
  const struct call *const call = (const struct call *)data;
  const void *const *const in = call->in;
  void *const *const out = call->out;
  unsigned char *const a = call->arena;
  unsigned char *const t = a + 1664 + (size_t)part * 384;
  const unsigned char *const w = m_weights;
  (void)in, (void)out, (void)a, (void)t, (void)w;
  if (part < 2) { /* 2 rows: 2 parts of 1 */
    const int row = part;
    /* %heads = qkv_attention(%qkv) {heads = 2, scale = 0.5, causal = false} : f32[1, 5, 16] */
    m_k_attention_heads_de496b9e(a + 0, a + 960, t + 0, t + 256, t + 320, row);
  }
}

static void phase_2(const void *data, int part) {
  const struct call *const call = (const struct call *)data;
  const void *const *const in = call->in;
  void *const *const out = call->out;
  unsigned char *const a = call->arena;
  unsigned char *const t = a + 1664 + (size_t)part * 384;
  const unsigned char *const w = m_weights;
  (void)in, (void)out, (void)a, (void)t, (void)w;
  if (part < 5) { /* 5 rows: 5 parts of 1 */
    const int row = part;
    /* %out = linear(%heads, %out.w) {activation = "none"} : f32[1, 5, 16] */
    m_k_linear_59f9891b(a + 960 + row * 64, w + 3200, a + 0 + row * 64);
    /* %y = add(%x, %out) : f32[1, 5, 16] */
    m_k_pointwise_5bac0f19((const unsigned char *)in[0] + row * 64, a + 0 + row * 64, a + 320 + row * 64);
  }
}

static void phase_3(const void *data, int part) {
  const struct call *const call = (const struct call *)data;
  const void *const *const in = call->in;
  void *const *const out = call->out;
  unsigned char *const a = call->arena;
  unsigned char *const t = a + 1664 + (size_t)part * 384;
  const unsigned char *const w = m_weights;
  (void)in, (void)out, (void)a, (void)t, (void)w;
  if (part == 0) {
    /* %first = slice(%y) {axis = 1, start = 0, stop = 1, step = 1} : f32[1, 1, 16] */
    m_k_move_b7615e8e(a + 320, out[0]);
  }
}

int m_run_mt(const void *const *in, void *const *out, void *arena, m_pool *pool) {
  const struct call call = {in, out, (unsigned char *)arena};
  const unsigned char *const w = m_weights;
  unsigned char *const a = (unsigned char *)arena;
  (void)a, (void)w;
  if (in == 0 || out == 0 || pool == 0 || (arena == 0 && 4736 > 0)) return -1;
  if ((uintptr_t)arena % 64 != 0) return -2;
  m_pool_run(pool, phase_0, &call, 8);
  m_pool_run(pool, phase_1, &call, 8);
  m_pool_run(pool, phase_2, &call, 8);
  phase_3(&call, 0);
  return 0;
}
