"""From a float network to a training network: trace, join, place quantizers, calibrate."""
