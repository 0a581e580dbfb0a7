"""Where a sweep's units are measured: in this process, or spread over a Ray cluster."""
