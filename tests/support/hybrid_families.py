"""Families that mix attention with layers of a state, for tests: config fields over
dense_families.SIZES, small, and with every feature where it shows."""

HYBRIDS = {
    "lfm2": (
        "Lfm2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "conv_L_cache": 4,
            "conv_bias": True,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 2.0,
            "block_multiple_of": 32,
        },
    ),
}
