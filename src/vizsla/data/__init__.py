"""Pictures: finding, dividing, decoding, preparing and varying them."""
