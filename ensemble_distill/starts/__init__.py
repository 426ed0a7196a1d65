"""Where a student begins: one member, several, last stages behind adapters, compressed members, shared modules."""
