// What a convolution and its gradient are told of sizes.
#pragma once
#include "tile.h"

struct Shape {
  long batch, height, width, channels, kernel, stride, pad, out_height, out_width, out_channels;
};
