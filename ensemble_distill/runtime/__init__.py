"""Files, locks, seeded keys, ranks, devices and progress: what every room stands on."""
