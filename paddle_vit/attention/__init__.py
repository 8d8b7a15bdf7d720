"""看模型的注意力:记录(``recording``),换成图像上的图(``maps``),画出来(``figures``)。"""

from .figures import distance_figure, filters_figure, heads_figure, maps_figure, overlay, position_figure, side_by_side
from .maps import attention_distance, gradient_rollout, position_similarity, position_table, rollout, token_map
from .recording import attention_weights, can_show_attention, has_windows, record_attention

__all__ = [
    "attention_distance",
    "attention_weights",
    "can_show_attention",
    "distance_figure",
    "filters_figure",
    "gradient_rollout",
    "has_windows",
    "heads_figure",
    "maps_figure",
    "overlay",
    "position_figure",
    "position_similarity",
    "position_table",
    "record_attention",
    "rollout",
    "side_by_side",
    "token_map",
]
