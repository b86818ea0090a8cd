"""What one call goes through, in this order: encode, prepare (select, shorten, hand over), generate, report."""
