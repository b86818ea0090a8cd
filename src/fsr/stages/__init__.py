"""The paper's equations as pure functions, batched over images: normalise, focus, scan, refine."""
