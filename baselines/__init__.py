"""The methods ElaLoRA is compared with, one file each, on the interface of `elalora.method`."""
