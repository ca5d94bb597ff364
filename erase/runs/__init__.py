"""One whole run each: erase, classify, attack, measure, calibrate."""
