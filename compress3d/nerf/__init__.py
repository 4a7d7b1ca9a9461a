"""Neural radiance fields over a multi-resolution hash grid: training, rendering, and what can be pruned of them."""
