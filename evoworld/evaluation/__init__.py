"""How good a world is: image and depth metrics, the hold-out split, and the peer that has no memory."""

from evoworld.evaluation.metrics import DepthMetrics, depth_metrics, psnr, ssim
from evoworld.evaluation.reprojection import Reprojection, fill_holes, reproject_points
from evoworld.evaluation.splits import split_frames

__all__ = [
    "DepthMetrics",
    "Reprojection",
    "depth_metrics",
    "fill_holes",
    "psnr",
    "reproject_points",
    "split_frames",
    "ssim",
]
