# The first program of a guest: prints a line end on the serial port, without a driver in between, and rests.
	.globl _start
_start:
	mov	$173, %eax	# ioperm(0x3f8, 1, 1)
	mov	$0x3f8, %edi
	mov	$1, %esi
	mov	$1, %edx
	syscall
	mov	$0x3f8, %edx
	mov	$'\n', %al
	out	%al, (%dx)
1:	mov	$34, %eax	# pause()
	syscall
	jmp	1b
