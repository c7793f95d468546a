#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The speed peer: HART 0.7B in plain PyTorch (random weights), timed stage by stage.

Written for side-by-side timing only: same shapes and operation counts as the published model, eager
PyTorch with its own fused attention. Prints one JSON line a run:
  {"res":512,"dtype":"f32","threads":2,"context_s":..,"transformer_s":..,"sampling_s":..,"diffusion_s":..,"decode_s":..,"total_s":..,"peak_rss_gb":..}
Usage: torch_hart.py --res 256|512|1024 [--dtype f32|bf16|f16] [--device cpu|cuda] [--threads N] [--repeat N] [--batch B]
Needs: pip install torch numpy (no other package).
"""
import argparse, json, math, resource, time
import torch
import torch.nn.functional as F

PATCH = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
C, DEPTH, HEADS, T, Z, V, HIDDEN = 1536, 24, 24, 300, 32, 4096, 4096
DW, DD, STEPS, CFG = 1024, 6, 8, 4.5
CH, MULT = 160, (1, 1, 2, 2, 4)

ap = argparse.ArgumentParser()
ap.add_argument("--res", type=int, default=512, choices=PATCH)
ap.add_argument("--dtype", default="f32", choices=("f32", "bf16", "f16"))
ap.add_argument("--device", default="cpu")
ap.add_argument("--threads", type=int, default=0)
ap.add_argument("--repeat", type=int, default=1)
ap.add_argument("--batch", type=int, default=1)
A = ap.parse_args()
if A.threads:
    torch.set_num_threads(A.threads)
DT = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[A.dtype]
dev = torch.device(A.device)
gen = torch.Generator(device=dev).manual_seed(0)


def w(*shape):
    fan = math.prod(shape[1:]) if len(shape) > 1 else 1
    return (torch.randn(*shape, generator=gen, device=dev) / math.sqrt(fan)).to(DT)


def zeros(n):
    return torch.zeros(n, device=dev, dtype=DT)


def lin(i, o, bias=True):
    return (w(o, i), zeros(o) if bias else None)


def conv(i, o, k=3):
    return (w(o, i, k, k), zeros(o), k // 2)


def cv(x, p):
    return F.conv2d(x, p[0], p[1], padding=p[2])


def rms(x, g):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * g


class Weights:
    pass


def build():
    m = Weights()
    ones = lambda n: torch.ones(n, device=dev, dtype=DT)
    m.ctx, m.ctx_g, m.word, m.lvl = lin(C, C), ones(C), lin(Z, C), [lin(256, C), lin(C, C)]
    m.blocks = [
        dict(g=ones(C), qkv=lin(C, 3 * C), proj=lin(C, C), gate=lin(C, HIDDEN, False), up=lin(C, HIDDEN, False), down=lin(HIDDEN, C, False))
        for _ in range(DEPTH)
    ]
    m.head, m.head_ada, m.dec_g = lin(C, V), lin(C, 2 * C), ones(C)
    m.phi, m.book = conv(Z, Z), w(V, Z)
    m.din, m.dcond, m.dt = lin(Z, DW), lin(C, DW), [lin(256, DW), lin(DW, DW)]
    m.dblocks = [dict(a=lin(DW, DW), b=lin(DW, DW), ada=lin(DW, 3 * DW)) for _ in range(DD)]
    m.dfin, m.dfin_ada = lin(DW, 2 * Z), lin(DW, 2 * DW)
    top = CH * MULT[-1]
    gn = lambda n: (ones(n), zeros(n))
    res = lambda i, o: dict(n1=gn(i), c1=conv(i, o), n2=gn(o), c2=conv(o, o), s=conv(i, o, 1) if i != o else None)
    att = lambda n: dict(n=gn(n), qkv=conv(n, 3 * n, 1), o=conv(n, n, 1))
    m.post, m.cin, m.mid = conv(Z, Z), conv(Z, top), (res(top, top), att(top), res(top, top))
    m.up, cur = [], top
    for level in reversed(range(len(MULT))):
        out, blocks = CH * MULT[level], []
        for _ in range(3):
            blocks.append((res(cur, out), att(out) if level == len(MULT) - 1 else None))
            cur = out
        m.up.append((blocks, conv(cur, cur) if level else None))
    m.nout, m.cout = gn(cur), conv(cur, 3)
    return m


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def sinus(t, n=256):
    f = torch.exp(-math.log(10000) * torch.arange(n // 2, device=dev) / (n // 2))
    a = torch.tensor([[float(t)]], device=dev) * f
    return torch.cat((a.cos(), a.sin()), -1).to(DT)


def res_block(x, p):
    h = cv(F.silu(F.group_norm(x, 32, *p["n1"], eps=1e-6)), p["c1"])
    h = cv(F.silu(F.group_norm(h, 32, *p["n2"], eps=1e-6)), p["c2"])
    return h + (cv(x, p["s"]) if p["s"] else x)


def attn_block(x, p):
    b, c, h, wd = x.shape
    q, k, v = cv(F.group_norm(x, 32, *p["n"], eps=1e-6), p["qkv"]).reshape(b, 3, c, h * wd).transpose(2, 3).unbind(1)
    o = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return x + cv(o.transpose(1, 2).reshape(b, c, h, wd), p["o"])


def decode(m, z):
    h = cv(cv(z, m.post), m.cin)
    h = res_block(attn_block(res_block(h, m.mid[0]), m.mid[1]), m.mid[2])
    for blocks, up in m.up:
        for r, a in blocks:
            h = res_block(h, r)
            h = attn_block(h, a) if a else h
        h = cv(F.interpolate(h, scale_factor=2, mode="nearest"), up) if up else h
    return cv(F.silu(F.group_norm(h, 32, *m.nout, eps=1e-6)), m.cout).clamp(-1, 1)


def diffuse(m, z, cfg):
    n = z.shape[0] // 2
    x = torch.randn(n, Z, generator=gen, device=dev).to(DT).repeat(2, 1)
    c = F.linear(z, *m.dcond)
    for k in range(STEPS):
        t = F.linear(F.silu(F.linear(sinus(1000 - 125 * k), *m.dt[0])), *m.dt[1])
        y = F.silu(c + t)
        h = F.linear(torch.cat((x[:n], x[:n])), *m.din)
        for p in m.dblocks:
            sh, sc, ga = F.linear(y, *p["ada"]).chunk(3, -1)
            u = F.layer_norm(h, (DW,), eps=1e-6) * (1 + sc) + sh
            h = h + ga * F.linear(F.silu(F.linear(u, *p["a"])), *p["b"])
        sh, sc = F.linear(y, *m.dfin_ada).chunk(2, -1)
        eps, v = F.linear(F.layer_norm(h, (DW,), eps=1e-6) * (1 + sc) + sh, *m.dfin).chunk(2, -1)
        eps = ((1 + cfg) * eps[:n] - cfg * eps[n:]).repeat(2, 1)
        x = (x - 0.1 * eps).clamp(-1, 1) + 0.05 * torch.exp(0.5 * v.clamp(-1, 1)) * torch.randn(x.shape, generator=gen, device=dev).to(DT)
    return x[:n] * 0.6


def sync():
    if dev.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def generate(m):
    B, pn, hd = A.batch, PATCH[A.res], C // HEADS
    S, side = len(pn), pn[-1]
    tm = dict(context_s=0.0, transformer_s=0.0, sampling_s=0.0, diffusion_s=0.0, decode_s=0.0)
    t_all = t0 = sync()
    ctx = torch.randn(B, T, C, generator=gen, device=dev).to(DT)
    cond = F.linear(rms(torch.cat((ctx, torch.zeros_like(ctx))), m.ctx_g), *m.ctx)
    head_cond = F.linear(F.silu(cond.amax(1, keepdim=True)), *m.head_ada).chunk(2, -1)
    cache, f_hat, x, last_pos = [None] * DEPTH, torch.zeros(B, Z, side, side, device=dev, dtype=DT), cond, 39.0
    tm["context_s"] += sync() - t0
    for s, n in enumerate(pn):
        t0 = sync()
        x = x + F.linear(F.silu(F.linear(sinus(s), *m.lvl[0])), *m.lvl[1])
        if s == 0:
            p = torch.arange(T, device=dev).float().clamp(max=last_pos)
            a = p[:, None] * 10000 ** (-torch.arange(0, hd, 2, device=dev) / hd)
            ang = torch.cat((a, a), -1)
        else:
            f = 10000 ** (-torch.arange(0, hd, 4, device=dev) / hd)
            g = torch.arange(n, device=dev) / n * side + last_pos
            r, c = (g.repeat_interleave(n)[:, None] * f, g.repeat(n)[:, None] * f)
            ang = torch.cat((r, r, c, c), -1)
        cos, sin = ang.cos().to(DT), ang.sin().to(DT)
        for i, b in enumerate(m.blocks):
            q, k, v = F.linear(rms(x, b["g"]), *b["qkv"]).view(2 * B, -1, 3, HEADS, hd).permute(2, 0, 3, 1, 4)
            q, k = rope(q, cos, sin), rope(k, cos, sin)
            if cache[i] is not None:
                k, v = torch.cat((cache[i][0], k), 2), torch.cat((cache[i][1], v), 2)
            cache[i] = (k, v)
            o = F.scaled_dot_product_attention(q, k, v, scale=0.25 / math.sqrt(hd))
            x = x + F.linear(o.transpose(1, 2).reshape(2 * B, -1, C), *b["proj"])
            h = rms(x, b["g"])
            x = x + F.linear(F.silu(F.linear(h, *b["gate"])) * F.linear(h, *b["up"]), *b["down"])
        h = rms(x, m.dec_g) * (1 + head_cond[0]) + head_cond[1]
        logits = F.linear(h if s else h[:, -1:], *m.head).float()
        tm["transformer_s"] += sync() - t0
        t0 = sync()
        ratio = (s if s < S - 1 else S - 2) / (S - 1)
        t = CFG * ratio
        logits = (1 + t) * logits[:B] - t * logits[B:]
        k = 600 if s < 7 else 300
        logits = logits.masked_fill(logits < logits.topk(k, -1)[0].amin(-1, keepdim=True), -torch.inf)
        idx = torch.multinomial(logits.softmax(-1).view(-1, V), 1, generator=gen).view(B, -1)
        gum = -torch.empty_like(logits).exponential_(generator=gen).log()
        h = ((logits * (1 + ratio) + gum) / max(0.27 * (1 - 0.95 * ratio), 0.005)).softmax(-1).to(DT) @ m.book
        if s < S - 1:
            u = F.interpolate(h.transpose(1, 2).reshape(B, Z, n, n).float(), (side, side), mode="bicubic").to(DT)
            f_hat = f_hat + 0.5 * u + 0.5 * cv(u, m.phi)
            nxt = F.interpolate(f_hat, (pn[s + 1], pn[s + 1]), mode="area").flatten(2).transpose(1, 2)
            x = F.linear(nxt, *m.word).repeat(2, 1, 1)
            tm["sampling_s"] += sync() - t0
        else:
            tm["sampling_s"] += sync() - t0
            t0 = sync()
            z = rms(x + F.linear(F.embedding(idx, m.book), *m.word).repeat(2, 1, 1), m.dec_g).reshape(-1, C)
            h = h + diffuse(m, z, t).view(B, -1, Z)
            f_hat = f_hat + h.transpose(1, 2).reshape(B, Z, side, side)
            tm["diffusion_s"] += sync() - t0
    t0 = sync()
    img = decode(m, f_hat)
    tm["decode_s"] += sync() - t0
    tm["total_s"] = sync() - t_all
    assert img.shape == (B, 3, A.res, A.res) and bool(torch.isfinite(img).all())
    return tm


model = build()
for _ in range(A.repeat):
    out = dict(res=A.res, batch=A.batch, dtype=A.dtype, device=A.device, threads=torch.get_num_threads())
    out.update({k: round(v, 4) for k, v in generate(model).items()})
    out["peak_rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    if dev.type == "cuda":
        out["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(json.dumps(out), flush=True)
