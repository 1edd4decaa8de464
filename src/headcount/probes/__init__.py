"""Questions about a pretrained model beside its trimming."""
