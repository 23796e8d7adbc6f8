"""Which engine flags a profile may hold that came over NATS: those that change how a model is computed, no others.

The settings file of a node is its owner's; a task or a record is anybody's who may publish. So what names a file,
folder, host, key or program, opens an endpoint or starts a tool is for the settings file alone. The list says what is
allowed: a flag of an engine that is not known here is refused. Files beside the model's own (projector, draft) are set
from the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.enginespec import FlagValue
from worker.flags import FlagRefused, check_flag, flag_name

TEXT_LIMIT_CHARS: Final = 65536
"""Of one value: a chat template fits."""
_WORDS: Final = """
threads threads-batch threads-http cpu-range cpu-range-batch cpu-strict cpu-strict-batch prio prio-batch poll poll-batch
predict n-predict batch-size ubatch-size keep swa-full flash-attn perf escape numa
rope-scaling rope-scale rope-freq-base rope-freq-scale
yarn-orig-ctx yarn-ext-factor yarn-attn-factor yarn-beta-slow yarn-beta-fast
kv-offload kv-unified repack op-offload cache-type-k cache-type-v defrag-thold mlock mmap direct-io load-mode
override-tensor cpu-moe n-cpu-moe n-gpu-layers gpu-layers split-mode tensor-split main-gpu device
fit fit-target fit-ctx check-tensors override-kv
log-verbosity verbosity log-prefix log-timestamps
samplers seed sampling-seq sampler-seq ignore-eos temp temperature top-k top-p min-p top-n-sigma top-nsigma typical
xtc-probability xtc-threshold repeat-last-n repeat-penalty presence-penalty frequency-penalty
dry-multiplier dry-base dry-allowed-length dry-penalty-last-n dry-sequence-breaker dynatemp-range dynatemp-exp
mirostat mirostat-lr mirostat-ent logit-bias grammar json-schema backend-sampling adaptive-target adaptive-decay
draft draft-n draft-max draft-min draft-n-min draft-p-min draft-p-split ctx-size-draft device-draft gpu-layers-draft
n-gpu-layers-draft threads-draft threads-batch-draft cache-type-k-draft cache-type-v-draft cpu-moe-draft
n-cpu-moe-draft override-tensor-draft spec-type spec-ngram-size-n spec-ngram-size-m spec-ngram-min-hits spec-replace
swa-checkpoints ctx-checkpoints cache-ram cache-prompt cache-reuse cache-idle-slots context-shift reverse-prompt special
warmup spm-infill pooling embd-normalize cont-batching mmproj-offload image-min-tokens image-max-tokens
embedding embeddings rerank reranking jinja reasoning reasoning-format reasoning-budget reasoning-budget-message
chat-template chat-template-kwargs skip-chat-parsing prefill-assistant slot-prompt-similarity
"""
ALLOWED: Final = frozenset(_WORDS.split())


def check_remote(flags: Mapping[str, FlagValue]) -> None:
    """Raises `FlagRefused` for the first one that is not for a profile which came over NATS."""
    for given, value in flags.items():
        name = flag_name(given)
        check_flag(name, value)
        if name not in ALLOWED and name.removeprefix("no-") not in ALLOWED:
            text = f"engine flag --{name} may not be set from outside: write it into the settings file of the node"
            raise FlagRefused(text, param="flags")
        for one in value if isinstance(value, list) else [value]:
            _check_text(name, str(one))


def _check_text(name: str, text: str) -> None:
    if len(text) > TEXT_LIMIT_CHARS or "\0" in text:
        raise FlagRefused(f"engine flag --{name}: its value is too long, or no text", param="flags")
