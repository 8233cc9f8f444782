"""Any image classification dataset, as uint8 tensors and the student's normalization."""
