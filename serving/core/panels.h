// The layers of an MLP in the layout that the kernels read. It knows nothing of requests.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "scorer.h"

constexpr int kMostLayers = 64;  // of the MLPs; cross layers take two each

struct Mlp {
  PanelLayer layers[2 * kMostLayers];
  int count = 0;
};

// Bytes of `memory` that pack_mlp takes.
int64_t packed_bytes(const Kernels& kernels, const ScorerLayer* layers, int count);

void pack_mlp(const Kernels& kernels, const ScorerLayer* layers, int count, Memory& memory,
              Mlp* mlp);
