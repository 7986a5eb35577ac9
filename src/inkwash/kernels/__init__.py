"""Fast paths for x86 processors with AVX-512 BF16, each with a twin in plain torch. B batch, T tokens, C channels.

On a GPU and under torch.compile the twins run, and where a layer's own parameters learn, unless its kernel has a gradient
by them; some have one by what lies before the layer alone, as beside a LoRA. Under autocast they take what has its type
already. They are compiled once, with the system's compiler, on first use; INKWASH_KERNELS=0 in the environment switches
them off. In bfloat16 they round less than torch's, in float32 by as much; only 3 x 3 convolutions in bfloat16, which leave
out five of nine products, round by twice as much. No result depends on the number of threads or the rest of the batch.
Convolutions that learn are the exception: the fastest of several ways is measured for each shape.
Where the processor has AMX, attention, convolutions and linear layers multiply by it in bfloat16, as torch's do, and the
faster of both is taken, as measured once for each shape; so do those in eight bits. What learns is torch's there.
"""

from inkwash.kernels.attention import attention
from inkwash.kernels.convolve import conv2d
from inkwash.kernels.convolve_int8 import conv2d_int8
from inkwash.kernels.geglu import geglu
from inkwash.kernels.int8 import geglu_int8, linear_int8
from inkwash.kernels.kernel import Kernel
from inkwash.kernels.linear import activated_linear, geglu_linear, linear
from inkwash.kernels.norm import group_norm
from inkwash.kernels.upsample import upsample

KERNELS: dict[str, Kernel] = {
    "activated_linear": activated_linear,
    "attention": attention,
    "conv2d": conv2d,
    "conv2d_int8": conv2d_int8,
    "linear": linear,
    "linear_int8": linear_int8,
    "geglu_int8": geglu_int8,
    "geglu": geglu,
    "geglu_linear": geglu_linear,
    "group_norm": group_norm,
    "upsample": upsample,
}
