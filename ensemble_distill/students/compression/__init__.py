"""Trained bodies made thinner: which layers can be factors (`factored`), what they see (`layers_seen`), how thin each
becomes (`ranks`), a kernel's factors (`canonical`), and all of it in order (`compress`)."""
