"""The demo model's shape: gpt-oss in small (docs/model.md), and the MXFP4 grid."""

import vocab

LAYERS = 6
HIDDEN = 256
HEADS = 8
KV_HEADS = 2
HEAD_DIM = 64
EXPERTS = 12
TOP_K = 4
WIDTH = 128
WINDOW = 128
VOCAB = vocab.SIZE
EPS = 1e-5
LIMIT = 7.0
THETA = 150000.0
FACTOR = 32.0
ORIGINAL_CONTEXT = 4096
CONTEXT = 131072
BETA_FAST = 32.0
BETA_SLOW = 1.0
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
