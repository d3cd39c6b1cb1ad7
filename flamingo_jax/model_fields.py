"""The fields of `config.model` with their defaults: Flamingo-3B's (Flamingo v2 Tables 4 and 5)."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

Config = Any
"""A `ConfigDict`: its own annotations give a field every type that a field can have."""


def _language() -> Config:
    c: Config = ConfigDict()
    c.vocab = 0  # V; 0 = the tokenizer's
    c.width = 2048  # D
    c.blocks = 24  # L
    c.heads = 16  # N
    c.kv_heads = 0  # K; 0 = heads
    c.head_dim = 128  # H
    c.hidden = 8192  # I
    c.norm = "rms"  # rms | layer
    c.norm_eps = 1e-6
    c.positions = "xl"  # xl (Transformer-XL relative) | rotary
    c.rotary_base = 10_000.0
    c.activation = "gelu"
    c.gated = False
    c.tied = True
    return c


def _vision() -> Config:
    c: Config = ConfigDict()
    c.kind = "nfnet"  # nfnet | vit
    c.image_size = 320
    c.mean = (0.485, 0.456, 0.406)  # of R, G, B in 0…1: pixels become "mean 0, variance 1"
    c.std = (0.229, 0.224, 0.225)
    c.dtype = "bfloat16"  # of the encoder's activations once it is frozen
    c.standardise = False  # features' mean and deviation per channel, measured once
    # Of NFNets alone:
    c.variant = "F6"  # a row of model/nfnet.py's table
    c.ws_eps = 1e-4  # of weight standardisation: 1e-4 the paper's code, 1e-5 timm
    c.stochastic_depth = 0.0  # contrastive stage only
    c.activated = True  # Flamingo's features after the encoder's last activation, or before
    c.vit = ConfigDict()  # of ViTs alone; CLIP's ViT-L/14 as OpenFlamingo reads it
    c.vit.patch = 14  # pixels of a patch's side
    c.vit.width = 1024  # E
    c.vit.blocks = 24  # L
    c.vit.heads = 16  # N
    c.vit.hidden = 4096  # I
    c.vit.activation = "quick_gelu"  # quick_gelu (OpenAI's weights) | gelu (most others)
    c.vit.norm_eps = 1e-5
    c.vit.class_feature = False  # is the class token among the features? (IDEFICS)
    c.vit.normed = False  # have the features passed the last norm? (open_clip from 2.23 on)
    return c


def model() -> Config:
    """Every legal key of `config.model` with its default."""
    c: Config = ConfigDict()
    c.dtype = "bfloat16"  # of activations and frozen weights; trained weights are f32
    # What is kept of the forward for the backward, D wide and a token if nothing else is said:
    # none       everything
    # dots       the results of products with weights (9 of a block): norms, scores are made again
    # attention  queries, keys, values, the stream before and after attention (5 of a block)
    # full       the stream before each layer (1): all is computed twice, a layer at a time
    c.remat = "full"
    # plain  scores are arrays, f32[B, N, T, S]
    # fused  a kernel where the platform has one for the call (model/fused.py), plain elsewhere
    c.attention = "plain"
    # Parts of a product's sum that lie on several devices (mesh.tensor > 1) travel as
    # float32  they are: twice the bytes
    # model    rounded to model.dtype, as is usual
    c.partial_sums = "float32"
    # Tokens of a row whose logits exist at a time, f32[B, tokens, V]; 0 = all. A fourth of a page's
    # 256: some thousand rows of the head's product on a device at usual batches, of which more gain
    # nothing; captions (at most 64 tokens in the paper) stay whole.
    c.loss_chunk = 64
    # Groups, and layers of the resampler and a ViT, one after another in the program: faster for a
    # few small ones.
    c.unroll = False
    # A group's blocks one after another in the program, the groups a loop: a step of 9B (groups of
    # 4) is a twentieth faster by a TPU's compiler; compiling takes longer with `xattn.every`.
    c.unroll_blocks = False
    c.language = _language()
    c.vision = _vision()
    c.text = ConfigDict()  # the contrastive text encoder (BERT's kind)
    c.text.width = 256
    c.text.blocks = 4
    c.text.heads = 4
    c.text.hidden = 1024
    c.text.max_length = 64
    c.text.residual_init = 1.0  # blocks' last linears, times 1/sqrt(fan-in); 0 = none adds at first
    c.text.positions_init = 0.02  # deviation of the position embeddings at first
    c.contrastive = ConfigDict()
    c.contrastive.width = 1376  # A
    c.contrastive.temperature = 0.07  # the initial one, learnt as log(1 / temperature)
    c.contrastive.label_smoothing = 0.1
    c.contrastive.dtype = "bfloat16"  # of the towers' activations while they are trained
    c.resampler = ConfigDict()
    c.resampler.depth = 6
    c.resampler.latents = 64  # R
    c.resampler.width = 1536  # E
    c.resampler.heads = 16
    c.resampler.head_dim = 128  # DECISIONS.md: 128 gives Table 5's 194M, 96 is Table 4's D/H
    c.resampler.hidden = 6144
    c.resampler.activation = "squared_relu"
    c.resampler.project = True  # a linear from the encoder's width to E
    c.resampler.max_frames = 8  # learnt time embeddings; interpolated for longer clips
    c.resampler.latents_init = 0.02
    c.xattn = ConfigDict()
    c.xattn.every = 1  # a gated layer before LM blocks offset, offset + every, …
    c.xattn.offset = 0
    c.xattn.heads = 16
    c.xattn.head_dim = 128
    c.xattn.hidden = 8192
    c.xattn.activation = "squared_relu"
    c.xattn.media_norm = True  # a norm on the media before keys and values; OpenFlamingo has none
    c.xattn.project = True  # media are projected to D once, before all layers' K and V
    c.xattn.attend = "one"  # one | upto: the token's image alone, or all up to it
    return c
