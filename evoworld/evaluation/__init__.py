"""How good a world is: image and depth metrics, the hold-out split, the peer that has no memory, the world model's."""

from evoworld.evaluation.frechet import frechet_distance
from evoworld.evaluation.metrics import DepthMetrics, depth_metrics, psnr, ssim
from evoworld.evaluation.reprojection import Reprojection, fill_holes, reproject_points
from evoworld.evaluation.seam import seam_ratio
from evoworld.evaluation.splits import split_frames

__all__ = [
    "DepthMetrics",
    "Reprojection",
    "depth_metrics",
    "fill_holes",
    "frechet_distance",
    "psnr",
    "reproject_points",
    "seam_ratio",
    "split_frames",
    "ssim",
]
