"""The networks themselves, in torch: features of clips in, one logit per emotion out."""
