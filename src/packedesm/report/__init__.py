"""What is said about results: how exact, how fast, how full."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "metrics": ["write_metrics"],
        "page": ["write_report"],
    },
)
