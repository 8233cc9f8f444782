"""What it costs to differentiate a network, in forward passes of the same images.

Floating-point operations that torch's counter finds on ConvNet-3; every kind of pass has one factor
here, for all that plan with it.
"""

IMAGE_GRADIENT = 2.0
"""Forward, and back to the images through weights that are frozen."""
WEIGHT_GRADIENT = 2.93
"""Forward, and back to the weights: a step of training."""
IMAGES_OF_WEIGHT_GRADIENT = 7.79
"""A gradient of the weights, and that differentiated in the images."""
TRACKED_STEP = 8.79
"""A gradient of the weights, and that differentiated in images and weights."""
STEP_BACK = 7.93
"""A Hessian-vector product for a step whose gradient is known: its forward pass is repeated."""
