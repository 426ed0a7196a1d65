"""Files, locks, seeded keys, ranks, devices and progress: what every other room builds on."""
