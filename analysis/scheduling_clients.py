"""How evenly a policy treats clients: the tail of each, from `requests`."""

from __future__ import annotations

import pandas as pd

from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.summary import measured_requests, numbers

# Fewer requests of a client have no 90th percentile to speak of.
FEW_REQUESTS = 10


def client_tails(sweep: Sweep, requests: pd.DataFrame | None = None, *, latency: str = "ttft_s") -> pd.DataFrame:
    """The 90th percentile of a latency by client, all repeats together.

    Args:
        sweep: from `analysis.load`.
        requests: from `analysis.summary.measured_requests`, which is asked where None.
        latency: a column of `requests`.

    Returns:
        One row a point that served two clients or more: `sweep point_id num_clients`, and over its clients `best`,
        `median` and `worst`, in seconds. Clients of fewer than 10 requests are left out.
    """
    requests = measured_requests(sweep) if requests is None else requests
    known = requests[requests["client_id"].notna()] if "client_id" in requests else requests[:0]
    values = numbers(known[latency]).dropna()
    grouped = values.groupby([known.loc[values.index, key] for key in (*POINT_KEY, "client_id")])
    tails = grouped.quantile(0.9)[grouped.size() >= FEW_REQUESTS].groupby(level=POINT_KEY)
    made = pd.DataFrame(
        {"num_clients": tails.size(), "best": tails.min(), "median": tails.median(), "worst": tails.max()}
    )
    return made[made["num_clients"] > 1].reset_index()
