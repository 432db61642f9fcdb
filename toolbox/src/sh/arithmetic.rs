//! `$(( ))`: whole numbers of 64 bits, as POSIX and C have them.

use brush_parser::ast::{
    ArithmeticExpr, ArithmeticTarget, BinaryOperator, UnaryAssignmentOperator, UnaryOperator,
};

use super::shell::Shell;

/// What an expression comes to.
pub(super) fn value(shell: &mut Shell, text: &str) -> Result<i64, String> {
    let text = shell.quoted(text)?;
    if text.trim().is_empty() {
        return Ok(0);
    }
    let parsed = brush_parser::arithmetic::parse(&text);
    let parsed = parsed.map_err(|_| format!("{text:?} is no arithmetic"))?;
    evaluate(shell, &parsed)
}

fn read(shell: &Shell, target: &ArithmeticTarget) -> Result<i64, String> {
    let text = shell.get(name(target)?).unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("{text:?} is no whole number"))
}

fn name(target: &ArithmeticTarget) -> Result<&str, String> {
    match target {
        ArithmeticTarget::Variable(name) => Ok(name),
        ArithmeticTarget::ArrayElement(..) => Err("arrays are Bash's".into()),
    }
}

fn write(shell: &mut Shell, target: &ArithmeticTarget, value: i64) -> Result<i64, String> {
    shell.set(name(target)?, value.to_string())?;
    Ok(value)
}

fn evaluate(shell: &mut Shell, expression: &ArithmeticExpr) -> Result<i64, String> {
    Ok(match expression {
        ArithmeticExpr::Literal(value) => *value,
        ArithmeticExpr::Reference(target) => read(shell, target)?,
        ArithmeticExpr::UnaryOp(operator, operand) => {
            let value = evaluate(shell, operand)?;
            match operator {
                UnaryOperator::UnaryPlus => value,
                UnaryOperator::UnaryMinus => value.wrapping_neg(),
                UnaryOperator::BitwiseNot => !value,
                UnaryOperator::LogicalNot => i64::from(value == 0),
            }
        }
        ArithmeticExpr::BinaryOp(BinaryOperator::LogicalAnd, left, right) => {
            i64::from(evaluate(shell, left)? != 0 && evaluate(shell, right)? != 0)
        }
        ArithmeticExpr::BinaryOp(BinaryOperator::LogicalOr, left, right) => {
            i64::from(evaluate(shell, left)? != 0 || evaluate(shell, right)? != 0)
        }
        ArithmeticExpr::BinaryOp(operator, left, right) => {
            let (left, right) = (evaluate(shell, left)?, evaluate(shell, right)?);
            binary(operator, left, right)?
        }
        ArithmeticExpr::Conditional(condition, yes, no) => {
            let chosen = if evaluate(shell, condition)? != 0 { yes } else { no };
            evaluate(shell, chosen)?
        }
        ArithmeticExpr::Assignment(target, operand) => {
            let value = evaluate(shell, operand)?;
            write(shell, target, value)?
        }
        ArithmeticExpr::BinaryAssignment(operator, target, operand) => {
            let right = evaluate(shell, operand)?;
            let value = binary(operator, read(shell, target)?, right)?;
            write(shell, target, value)?
        }
        ArithmeticExpr::UnaryAssignment(operator, target) => {
            let before = read(shell, target)?;
            let (by, is_prefix) = match operator {
                UnaryAssignmentOperator::PrefixIncrement => (1, true),
                UnaryAssignmentOperator::PrefixDecrement => (-1, true),
                UnaryAssignmentOperator::PostfixIncrement => (1, false),
                UnaryAssignmentOperator::PostfixDecrement => (-1, false),
            };
            let after = write(shell, target, before.wrapping_add(by))?;
            if is_prefix { after } else { before }
        }
    })
}

fn binary(operator: &BinaryOperator, left: i64, right: i64) -> Result<i64, String> {
    let divided = |value: Option<i64>| value.ok_or_else(|| "division by zero".to_owned());
    Ok(match operator {
        BinaryOperator::Power => {
            let exponent = u32::try_from(right).map_err(|_| "an exponent below 0".to_owned())?;
            left.wrapping_pow(exponent)
        }
        BinaryOperator::Multiply => left.wrapping_mul(right),
        BinaryOperator::Divide => divided(left.checked_div(right))?,
        BinaryOperator::Modulo => divided(left.checked_rem(right))?,
        BinaryOperator::Comma => right,
        BinaryOperator::Add => left.wrapping_add(right),
        BinaryOperator::Subtract => left.wrapping_sub(right),
        BinaryOperator::ShiftLeft => left.wrapping_shl(right as u32),
        BinaryOperator::ShiftRight => left.wrapping_shr(right as u32),
        BinaryOperator::LessThan => i64::from(left < right),
        BinaryOperator::LessThanOrEqualTo => i64::from(left <= right),
        BinaryOperator::GreaterThan => i64::from(left > right),
        BinaryOperator::GreaterThanOrEqualTo => i64::from(left >= right),
        BinaryOperator::Equals => i64::from(left == right),
        BinaryOperator::NotEquals => i64::from(left != right),
        BinaryOperator::BitwiseAnd => left & right,
        BinaryOperator::BitwiseXor => left ^ right,
        BinaryOperator::BitwiseOr => left | right,
        BinaryOperator::LogicalAnd => i64::from(left != 0 && right != 0),
        BinaryOperator::LogicalOr => i64::from(left != 0 || right != 0),
    })
}
